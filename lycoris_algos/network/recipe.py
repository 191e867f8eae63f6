"""How a written file says what it was made from, in its metadata as JSON: names, hashes, earlier recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .adapter_set import AdapterSet
from .content import content_hash
from .multipliers import Multipliers

#: Metadata key of how an adapter file was made.
RECIPE = "lycoris_algos.recipe"
# A longer one is no recipe of ours, or has become a burden to the files that are made from it.
_LONGEST = 100_000


def source_record(adapters: AdapterSet, multipliers: Sequence[Multipliers] = ()) -> dict[str, Any]:
    """A source of a file: its name, the hash of its tensors, the rules it was used with, its own recipe."""
    record: dict[str, Any] = {"file": adapters.name, "tensors_sha256": content_hash(adapters)}
    if multipliers:
        record["multipliers"] = [str(own) for own in multipliers]
    earlier = _parsed(adapters.metadata.get(RECIPE))
    return record if earlier is None else {**record, "recipe": earlier}


def _parsed(text: str | None) -> Mapping[str, Any] | None:
    try:
        parsed = json.loads(text) if text and len(text) < _LONGEST else None
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, Mapping) else None
