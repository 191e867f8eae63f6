"""Trainer dialects, one file each: strings in, strings out.

A key of an adapter file is a layer's name, a dot, and the suffix that says which tensor of the layer it is.
Both halves may hold dots, so a key is split at the longest suffix that some algorithm is stored under.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from . import comfy, kohya, lycoris
from ._base import Dialect

DIALECTS: tuple[Dialect, ...] = (kohya.DIALECT, lycoris.DIALECT, comfy.DIALECT)

#: For files whose layer names follow none of the dialects.
UNKNOWN = Dialect(name="unknown", title="unknown", model_prefixes=())

# Other spellings of a suffix that ComfyUI's generic dialect uses, as LyCORIS spells them.
_SPELLINGS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
}


def split_key(key: str, suffixes: Collection[str]) -> tuple[str, str] | None:
    """``key`` as (layer, suffix in LyCORIS' spelling), or None if it ends in no known suffix."""
    position = key.find(".")
    while position > 0:
        suffix = key[position + 1 :]
        suffix = _SPELLINGS.get(suffix, suffix)
        if suffix in suffixes:
            return key[:position], suffix
        position = key.find(".", position + 1)
    return None


def dialect_of(layer: str) -> Dialect:
    """The dialect that ``layer`` is spelled in; ``UNKNOWN`` if none is."""
    return next((dialect for dialect in DIALECTS if dialect.speaks(layer)), UNKNOWN)


def common_dialect(layers: Iterable[str]) -> Dialect:
    """The dialect of most of ``layers``."""
    counts = Counter(dialect_of(layer).name for layer in layers)
    if not counts:
        return UNKNOWN
    name = counts.most_common(1)[0][0]
    return next((dialect for dialect in DIALECTS if dialect.name == name), UNKNOWN)


def is_text_layer(layer: str) -> bool:
    """Whether ``layer`` belongs to a text encoder, as far as its name tells."""
    return dialect_of(layer).is_text(layer)


__all__ = ["DIALECTS", "UNKNOWN", "Dialect", "common_dialect", "dialect_of", "is_text_layer", "split_key"]
