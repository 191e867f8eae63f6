"""Dialects, one file each: how each trainer spells the names of layers and tensors. Strings only.

A key of an adapter file is a layer's name, a dot, and the suffix that says which tensor of the layer it is.
Reading takes every spelling of a suffix with every spelling of a layer, since programs mix them; which
dialect a file is in is only said to people, and used to write it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from . import _paths, bare, comfy, diffusers, hcp, kohya, lycoris, onetrainer, peft
from ._base import Dialect
from ._suffixes import WEAK_SUFFIXES, canonical_suffix, split_key

#: No two spell a layer alike.
DIALECTS: tuple[Dialect, ...] = (
    kohya.DIALECT,
    lycoris.DIALECT,
    onetrainer.DIALECT,
    comfy.DIALECT,
    peft.DIALECT,
    diffusers.DIALECT,
    hcp.DIALECT,
    bare.DIALECT,
)

#: For files whose layer names follow none of the dialects.
UNKNOWN = Dialect(name="unknown", title="unknown", model_prefixes=())


def dialect_of(layer: str) -> Dialect:
    """The dialect that ``layer`` is spelled in; ``UNKNOWN`` if none is."""
    return next((dialect for dialect in DIALECTS if dialect.speaks(layer)), UNKNOWN)


def common_dialect(layers: Iterable[str]) -> Dialect:
    """The dialect of most of ``layers``; of two with as many, the first of ``DIALECTS``."""
    counts = Counter(dialect_of(layer) for layer in layers)
    return max((*DIALECTS, UNKNOWN), key=lambda dialect: counts[dialect]) if counts else UNKNOWN


def is_text_layer(layer: str) -> bool:
    """Whether ``layer`` belongs to a text encoder, as far as its name tells."""
    return dialect_of(layer).is_text(layer)


def model_paths(layer: str) -> Iterator[str]:
    """Paths in a diffusion model that ``layer`` may mean, in any dialect; the name as it stands first."""
    return _paths.model_paths(layer, DIALECTS)


def text_paths(layer: str) -> Iterator[str]:
    """Paths in a text encoder that ``layer`` may mean, in any dialect; the name as it stands first."""
    return _paths.text_paths(layer, DIALECTS)


encoder_number = _paths.encoder_number
tails = _paths.tails

__all__ = [
    "DIALECTS",
    "UNKNOWN",
    "WEAK_SUFFIXES",
    "Dialect",
    "canonical_suffix",
    "common_dialect",
    "dialect_of",
    "encoder_number",
    "is_text_layer",
    "model_paths",
    "split_key",
    "tails",
    "text_paths",
]
