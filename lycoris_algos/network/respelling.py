"""Gives layers the names of another dialect, and cuts or joins them where that has other layers.

Most layers only change their name. Queries, keys and values, though, are one layer in some programs' models
and three in others': rows of a layer then become layers of their own, or several layers one, exactly.
Underscores do not say where dots were, and diffusers calls the layers of most models otherwise, so that names
alone tell little; a caller who knows the model gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ..adapters import LayerAdapter, of_row_parts, row_part
from ..errors import NoSpellingError
from ..formats import DIALECTS, Dialect, dialect_of, encoder_number, is_text_layer, model_paths, text_paths
from ..text import Brief, quoted
from .roles import KnownRoles

#: The dialects that files can be written in.
WRITABLE = ("kohya", "comfy", "diffusers", "peft")

# What only UNets have; kohya and ComfyUI know their layers by diffusers' names too.
_UNET_BLOCKS = re.compile(
    r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding)([._]|$)"
)
# What no program calls a block but the models themselves, whose paths kohya flattens.
_NATIVE_BLOCKS = re.compile(
    r"(double_blocks|single_blocks|joint_blocks|(double|single)_stream_blocks"
    r"|(input|output)_blocks|middle_block|(noise|context)_refiner)[._]"
)
# diffusers' names of Z-Image, which are written with ComfyUI's prefix.
_NOT_OWN = re.compile(r"(layers|(noise|context)_refiner)\.\d+\.attention\.to_")

# Dialects whose paths are diffusers' own.
_OF_DIFFUSERS = ("diffusers", "peft", "onetrainer")


@dataclass(frozen=True)
class Part(Brief):
    """Rows of a layer, and what a dialect calls the layer that they are or belong to.

    ``rows`` (start, count) are those of the layer that is renamed. ``within`` (start, count, of how many)
    says where they are in the layer called ``name``. None: all of it.
    """

    name: str
    rows: tuple[int, int] | None = None
    within: tuple[int, int, int] | None = None


class KnownNames(KnownRoles, Protocol):
    """Who knows what the names of layers mean: any ``KnownModel`` does."""

    def is_text(self, layer: str) -> bool:
        """Whether ``layer`` is one of a text encoder."""

    def spelled(self, layer: str, dialect: str) -> Sequence[Part] | None:
        """``layer`` as ``dialect`` spells it, in parts; empty if it has no name for it, None if unknown."""


@dataclass(frozen=True, eq=False)
class Respelled(Brief):
    """A layer under its new name, and the old name of (the first of) what it was made from."""

    adapter: LayerAdapter
    source: str


def writable(name: str) -> Dialect:
    """The dialect of that name. Raises NoSpellingError for one that files are not written in."""
    if name not in WRITABLE:
        raise NoSpellingError(f"files are written as {', '.join(WRITABLE)}, not as {quoted(name)}")
    return next(dialect for dialect in DIALECTS if dialect.name == name)


def respelled(
    layers: Mapping[str, LayerAdapter], dialect: Dialect, known: KnownNames | None, *, adding: bool = False
) -> dict[str, Respelled]:
    """``layers`` as ``dialect`` spells them; see this module.

    ``adding``: two that come to change the same rows are added up. Raises NoSpellingError, naming the layer,
    for what ``dialect`` has no word or no form for, and for such two otherwise.
    """
    numbered = any(encoder_number(name) == 2 for name in layers)
    gathered: dict[str, list[tuple[Part, Respelled]]] = {}
    for name, layer in layers.items():
        for part in _parts(name, dialect, known, numbered):
            cut = layer if part.rows is None else row_part(layer, *part.rows)
            if cut is None:
                raise NoSpellingError(
                    f"layer {quoted(name)}: {dialect.title} has several layers for it, and "
                    f"{' + '.join(layer.titles)} cannot be cut: {_INSTEAD}"
                )
            gathered.setdefault(part.name, []).append((part, Respelled(cut, name)))
    return {name: _joined(name, parts, dialect, adding) for name, parts in gathered.items()}


def in_one_dialect(
    layers: Mapping[str, LayerAdapter], wanted: Iterable[str], known: KnownNames | None
) -> tuple[dict[str, Respelled], str | None]:
    """(``layers`` in the first dialect of ``wanted``, else of any, that can spell them all; its name).

    They stay as they are where they share a dialect, and with None for its name where none can.
    """
    own = {name: Respelled(layer, name) for name, layer in layers.items()}
    spoken = {dialect_of(name).name for name in layers}
    if len(spoken) == 1:
        return own, spoken.pop()
    for name in dict.fromkeys((*wanted, *WRITABLE)):
        if name in WRITABLE:
            try:
                return respelled(layers, writable(name), known, adding=True), name
            except NoSpellingError:
                continue
    return own, None


_INSTEAD = "choose ComfyUI's spelling or that of the file, or let CombineLyCORIS make a LoRA of it first"


def _joined(name: str, parts: Sequence[tuple[Part, Respelled]], dialect: Dialect, adding: bool) -> Respelled:
    (part, first), *others = parts
    if not others and part.within is None:
        return first
    if _overlap([own for own, _ in parts]) and not adding:
        raise NoSpellingError(
            f"two layers would be called {quoted(name)}, one of them is {quoted(parts[-1][1].source)}"
        )
    totals = (own.within[2] for own, _ in parts if own.within is not None)
    total = next(totals, None) or _rows_of(first.adapter)
    placed = [(0 if own.within is None else own.within[0], piece.adapter) for own, piece in parts]
    joined = None if total is None else of_row_parts(placed, total)
    if joined is None:
        titles = sorted({title for _, piece in parts for title in piece.adapter.titles})
        raise NoSpellingError(
            f"layer {quoted(first.source)}: {dialect.title} has one layer for it and others, and "
            f"{' + '.join(titles)} cannot be made a part of one: {_INSTEAD}"
        )
    return Respelled(joined, first.source)


def _rows_of(layer: LayerAdapter) -> int | None:
    return None if layer.matrix_shape is None else layer.matrix_shape[0]


def _overlap(parts: Sequence[Part]) -> bool:
    """Whether two of ``parts``, which are of one layer, hold the same row."""
    if any(part.within is None for part in parts):
        return len(parts) > 1
    ranges = sorted(part.within for part in parts if part.within is not None)
    return any(one[0] + one[1] > other[0] for one, other in pairwise(ranges))


# ---- names ----------------------------------------------------------------------------------------------


def _parts(name: str, dialect: Dialect, known: KnownNames | None, numbered: bool) -> Sequence[Part]:
    if dialect_of(name) is dialect:
        return (Part(name),)
    parts = known.spelled(name, dialect.name) if known is not None else None
    if parts is None:
        alone = _by_name_alone(name, dialect, numbered)
        parts = () if alone is None else (Part(alone),)
    if not parts:
        raise NoSpellingError(
            f"layer {quoted(name)}: its name alone does not tell how {dialect.title} spells it. "
            + ("The model has no such name for it" if known is not None else "Give the model, which tells")
        )
    return parts


def _by_name_alone(name: str, dialect: Dialect, numbered: bool) -> str | None:
    """What needs no model: dots to underscores, and one dotted prefix for another before the same path."""
    own = dialect_of(name)
    if is_text_layer(name):
        path = _shortest(text_paths(name))
        number = encoder_number(name) or 1
        if dialect.name == "kohya" and own.name in ("diffusers", "peft", "lycoris"):
            return f"lora_te{number if numbered else ''}_{path.replace('.', '_')}"
        return None
    path = _shortest(model_paths(name))
    is_unet = _UNET_BLOCKS.match(path) is not None and not name.startswith("transformer.")
    if dialect.name == "kohya":
        is_own = own.name not in _OF_DIFFUSERS and _NATIVE_BLOCKS.match(path) is not None
        if own.name == "comfy":
            is_own = _NOT_OWN.match(path) is None
        return f"lora_unet_{path.replace('.', '_')}" if is_unet or is_own else None
    if dialect.name == "diffusers" and own.name == "peft":
        return f"{'unet' if is_unet else 'transformer'}.{path}"
    return f"base_model.model.{path}" if dialect.name == "peft" and own.name == "diffusers" else None


def _shortest(paths: Iterable[str]) -> str:
    """The path with the most taken off."""
    return min(paths, key=len)
