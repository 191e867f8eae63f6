"""What a baked file says about how it was made, in its metadata under ``lycoris_algos.bake``.

What the base's metadata said is kept, except fingerprints of its own tensors, which would be untrue now: they
move into the recipe. A base that was baked itself keeps its recipe inside the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from ...network.recipe import source_record
from .plan import BakePlan

KEY = "lycoris_algos.bake"
_FINGERPRINTS = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


def baked_metadata(plan: BakePlan, record: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a new file: the ``metadata`` of the base's, and the recipe, with its ``record``."""
    old = dict(metadata)
    base = dict(record)
    base.update({name: old.pop(name) for name in _FINGERPRINTS if name in old})
    earlier = old.pop(KEY, None)
    if earlier is not None:
        base["recipe"] = _json_or_text(earlier)
    recipe = {
        "version": 1,
        "program": plan.program,
        "torch": torch.__version__.split("+")[0],
        "base": base,
        "adapters": [
            {
                **source_record(file.entry.adapters, file.entry.multipliers),
                "multiplier": file.entry.strength_model,
                "clip_multiplier": file.entry.strength_clip,
                "layers": len(file.placed),
                "unmatched": len(file.unmatched),
            }
            for file in plan.files
        ],
        "dtype": "as base" if plan.dtype is None else str(plan.dtype).removeprefix("torch."),
        "seed": plan.seed,
    }
    if plan.dropped:  # nothing is stored with a scale any more
        old.pop("_quantization_metadata", None)
    return {**old, KEY: json.dumps(recipe, ensure_ascii=False)}


def _json_or_text(text: str) -> Any:
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, Mapping) else text
