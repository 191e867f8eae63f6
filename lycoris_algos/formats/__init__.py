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
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "lora_magnitude_vector.default.weight": "lora_magnitude_vector",
    "magnitude": "lora_magnitude_vector",
}

#: Suffixes that a model's own tensors have too: they count only beside another tensor of an adapter.
WEAK_SUFFIXES = frozenset({"weight", "scale", "magnitude"})


def split_key(key: str, suffixes: Collection[str]) -> tuple[str, str] | None:
    """``key`` as (layer, suffix in LyCORIS' spelling), or None if it ends in no known suffix.

    ``WEAK_SUFFIXES`` do not count.
    """
    position = key.find(".")
    while position > 0:
        stored = key[position + 1 :]
        suffix = canonical_suffix(stored)
        if suffix in suffixes and stored not in WEAK_SUFFIXES:
            return key[:position], suffix
        position = key.find(".", position + 1)
    return None


def canonical_suffix(suffix: str) -> str:
    """``suffix`` as LyCORIS spells it."""
    return _SPELLINGS.get(suffix, suffix)


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


__all__ = [
    "DIALECTS",
    "UNKNOWN",
    "WEAK_SUFFIXES",
    "Dialect",
    "canonical_suffix",
    "common_dialect",
    "dialect_of",
    "is_text_layer",
    "split_key",
]
