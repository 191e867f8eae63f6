"""What a baked file says about how it was made, in its metadata under ``lycoris_algos.bake``.

What the base's metadata said is kept, except fingerprints of its own tensors, which would be untrue now: they
move into the recipe. A base that was baked itself keeps its recipe inside the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ...io import SafetensorsReader
from ...network import AdapterSet, to_tensors
from .plan import BakePlan

KEY = "lycoris_algos.bake"
_FINGERPRINTS = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
# The cheap fingerprint of a checkpoint: so many samples of so many bytes, evenly spread.
_SAMPLES, _SAMPLE = 64, 1 << 16


def baked_metadata(plan: BakePlan, reader: SafetensorsReader) -> dict[str, str]:
    """The metadata of the new file: the base's, and the recipe."""
    old = dict(reader.metadata)
    base: dict[str, Any] = {
        "file": plan.base,
        "bytes": plan.header.file_size,
        "sampled_sha256": sampled_hash(reader),
    }
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
                "file": file.entry.adapters.name,
                "tensors_sha256": content_hash(file.entry.adapters),
                "multiplier": file.entry.multiplier,
                "clip_multiplier": file.entry.clip_multiplier,
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


def content_hash(adapters: AdapterSet) -> str:
    """sha256 over the names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(to_tensors(adapters).items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sampled_hash(reader: SafetensorsReader) -> str:
    """sha256 over the file's header and samples spread evenly over all of it.

    A file of gigabytes is told from every other model by it, for the price of four megabytes.
    """
    digest = hashlib.sha256()
    for name, info in reader.header.tensors.items():
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0{info.start}\0".encode())
    start, size = reader.header.data_start, reader.header.file_size
    step = max((size - start) // _SAMPLES, _SAMPLE)
    for position in range(start, size, step):
        digest.update(reader.read_bytes(position, min(_SAMPLE, size - position)))
    return digest.hexdigest()


def _json_or_text(text: str) -> Any:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, Mapping) else text
