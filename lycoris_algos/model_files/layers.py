"""The layers of one half of a model, its diffusion model or its text encoders: which of them a name means.

A name may have several meanings: the number of a text encoder, for one, depends on who counted. All are
offered, best first, and an adapter held against the shapes decides. A layer that the model stores in pieces
means all of them; pieces that the model stores as one are parts of that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..adapters import LayerAdapter
from ..errors import LycorisError, ShapeMismatchError
from ..formats import encoder_number, is_text_layer, model_paths, tails, text_paths
from ..models import Family, Role, families_of, parts_of, role_of, split_names, text_role
from ..network import Part
from ..text import Brief
from .names import NameIndex, flattened
from .places import AdapterRows, Shape, Spot, Spots, pieces_of, row_ranges, stored_rows
from .spelling import model_name, text_name
from .text_encoders import encoder_and_path

# The number of a block.
_NUMBER = re.compile(r"(?:^|[._])\d+[._]")


class UnsuitableError(LycorisError):
    """The model stores a parameter in a way that no adapter can change."""


@dataclass(frozen=True)
class Paths(Brief):
    """What ComfyUI calls the places of a model (paths), and diffusers (whole names)."""

    own: Mapping[Spot, str] = field(default_factory=dict)
    diffusers: Mapping[Spot, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerIndex(Brief):
    """The layer names that one half of a model answers to. ``what`` names it for people.

    ``shape_of`` gives the shape of the parameter of a key, None if there is none; of the keys ``packed`` it
    is not the layer's. ``encoder_of`` names the text encoder of each key, in their order. ``find_paths`` is
    asked once a layer is to be renamed.
    """

    what: str
    names: NameIndex
    shape_of: Callable[[str], Shape | None]
    is_text: bool = False
    packed: frozenset[str] = frozenset()
    encoder_of: Mapping[str, str] = field(default_factory=dict)
    find_paths: Callable[[], Paths] = Paths
    _named_in: dict[str, dict[str, list[tuple[str, Spot]]]] = field(default_factory=dict, init=False)

    @cached_property
    def encoders(self) -> tuple[str, ...]:
        """ComfyUI's names of the text encoders, in the order of their numbers."""
        return tuple(dict.fromkeys(self.encoder_of.values()))

    # ---- from a name to places ------------------------------------------------------------------

    def meanings(self, layer: str) -> Iterator[Spots]:
        """What ``layer`` may mean, best first: one spot, or several where the layer is stored in pieces."""
        paths = list(dict.fromkeys(self._text_paths(layer) if self.is_text else model_paths(layer)))
        spots = [spot for path in paths for spot in self.names.look_up(path)]
        for spot in dict.fromkeys(self._preferred(layer, spots)) if len(spots) > 1 else spots:
            if self.shape((spot,)) is not None:
                yield (spot,)
        for path in paths:
            stored = self.names.pieces(path)
            if stored is not None and self.shape(stored) is not None:
                yield stored
            for names in split_names(flattened(path)):
                pieces = [next(iter(self._preferred(layer, self.names.look_up(n))), None) for n in names]
                known = tuple(spot for spot in pieces if spot is not None)
                if len(known) == len(pieces) and self.shape(known) is not None:
                    yield self._joined(known)
        if not spots and is_text_layer(layer) == self.is_text:
            yield from self._by_tail(layer)

    def _by_tail(self, layer: str) -> Iterator[Spots]:
        """What ``layer`` means without an unknown prefix: its longest tail that names a layer of a block."""
        for tail in tails(layer):
            spots = self._preferred(layer, self.names.look_up(tail)) if _NUMBER.search(tail) else ()
            known = [(spot,) for spot in spots if self.shape((spot,)) is not None]
            if known:
                yield from known
                return

    def _text_paths(self, layer: str) -> Iterator[str]:
        """``text_paths``, and without an encoder's name that the model does not have.

        Most files of language models do not say what ComfyUI calls them; the width of a CLIP does.
        """
        for path in text_paths(layer):
            yield path
            inside = encoder_and_path(path)
            if inside is not None and not inside[0].startswith("clip_") and inside[0] not in self.encoders:
                yield inside[1]

    def shape(self, spots: Spots) -> Shape | None:
        """The shape of ``spots`` laid one below the other; None if one is not there, or they do not match."""
        shapes = [self._spot_shape(spot) for spot in spots]
        if len(shapes) == 1:
            return shapes[0]
        known = [shape for shape in shapes if shape]
        if len(known) < len(shapes) or len({shape[1:] for shape in known}) != 1:
            return None
        return (sum(shape[0] for shape in known), *known[0][1:])

    def counts(self, spots: Spots) -> list[int]:
        """How many rows each of ``spots`` has."""
        return [(self._spot_shape(spot) or (1,))[0] for spot in spots]

    def bias_of(self, spot: Spot) -> Spot | None:
        """The place of the bias that belongs to the weight at ``spot``, or None if the layer has none."""
        key = spot.key.removesuffix("weight") + "bias"
        if not spot.key.endswith("weight") or spot.transposed or self.shape_of(key) is None:
            return None
        if spot.part is not None and spot.part[0] != 0:  # a slice of the inputs leaves the bias alone
            return None
        return replace(spot, key=key)

    def _spot_shape(self, spot: Spot) -> Shape | None:
        stored = self.shape_of(spot.key)
        return None if stored is None else spot.shape(stored)

    def _preferred(self, layer: str, spots: Collection[Spot]) -> Collection[Spot]:
        """``spots`` with those first that are in the text encoder which the name numbers."""
        number = encoder_number(layer) if len(spots) > 1 else None
        if number is None or number > len(self.encoders):
            return spots
        meant = self.encoders[number - 1]
        return sorted(spots, key=lambda spot: self.encoder_of.get(spot.key) != meant)

    def _joined(self, spots: Spots) -> Spots:
        """``spots`` as one where they are slices of one weight that follow each other."""
        first = spots[0]
        if first.part is None or first.part[0] != 0 or first.swapped or first.function is not None:
            return spots
        start = position = first.part[1]
        for spot in spots:
            length = 0 if spot.part is None else spot.part[2]
            if spot != replace(first, part=(0, position, length)):
                return spots
            position += length
        whole = replace(first, part=None)
        is_all = self.counts((whole,)) == [position - start]
        return (whole if is_all else replace(first, part=(0, start, position - start)),)

    # ---- whether an adapter fits there ----------------------------------------------------------

    def check(self, adapter: LayerAdapter, spots: Spots) -> None:
        """Raises ShapeMismatchError or UnsuitableError unless ``adapter`` fits ``spots``, biases and all."""
        self.check_weight(adapter, spots)
        self.bias_places(adapter, spots)
        if adapter.reshape is not None and spots != (Spot(spots[0].key),):
            raise UnsuitableError(
                f"it enlarges a weight that {self.what} stores in pieces or as a part of another"
            )

    def check_weight(self, adapter: LayerAdapter, spots: Spots) -> None:
        """The same of the weight alone."""
        if not any(spot.key in self.packed for spot in spots):
            self._check_shape(adapter, self.shape(spots) or ())
        if adapter.needs_weight and any(spot.function is not None for spot in spots):
            titles = " + ".join(adapter.titles)
            raise UnsuitableError(
                f"{titles} depends on the weight, which {self.what} stores in another order"
            )

    @staticmethod
    def _check_shape(adapter: LayerAdapter, shape: Shape) -> None:
        try:
            adapter.fits(shape)
        except ShapeMismatchError as error:
            if len(shape) == 2 and adapter.matrix_shape == (shape[0], 2 * shape[1]):
                raise ShapeMismatchError(f"{error}, half as wide, as for control adapters") from error
            raise

    def bias_places(self, adapter: LayerAdapter, spots: Spots) -> list[tuple[AdapterRows, Spot] | None]:
        """For each of ``spots``: what ``adapter`` adds to its bias and where that is, None if nothing.

        Raises UnsuitableError where it changes a bias that is not there, ShapeMismatchError for another size.
        """
        if adapter.bias is None:
            return [None] * len(spots)
        places: list[tuple[AdapterRows, Spot] | None] = []
        for spot, own in zip(spots, pieces_of(adapter.bias, self.counts(spots)), strict=True):
            bias = self.bias_of(spot)
            if bias is not None:
                own.fits(self.shape((bias,)) or ())
            elif adapter.needs_bias:
                raise UnsuitableError(f"it changes a bias, but this layer of {self.what} has none")
            places.append(None if bias is None else (own, bias))
        return places

    # ---- from places to a name ------------------------------------------------------------------

    def name_in(self, dialect: str, spots: Spots) -> str | None:
        """What ``dialect`` calls the layer at ``spots``; None if it has no name for it, or none is known."""
        if len(spots) != 1:
            return None
        own, diffusers = (known.get(spots[0]) for known in (self._paths.own, self._paths.diffusers))
        if self.is_text:
            return text_name(dialect, own, self.encoders)
        return model_name(dialect, own, diffusers, as_diffusers=self._kohya_follows_diffusers)

    def spelled(self, dialect: str, spots: Spots) -> tuple[Part, ...]:
        """The layer at ``spots`` in the layers that ``dialect`` has there; nothing if some have no name."""
        whole = self.name_in(dialect, spots)
        if whole is not None:
            return (Part(whole),)
        parts: list[Part] = []
        counts = self.counts(spots)
        for spot, first in zip(spots, (start for start, *_ in row_ranges(counts)), strict=True):
            for name, other in self._named(dialect).get(spot.key, ()):
                parts += self._shared_rows(name, spot, first, other)
        is_all = sum(part.rows[1] for part in parts if part.rows is not None) == sum(counts)
        if len(parts) == 1 and is_all:
            (part,) = parts
            fills = part.within is not None and part.within[1] == part.within[2]
            return (replace(part, rows=None, within=None if fills else part.within),)
        return tuple(parts) if is_all else ()

    def _shared_rows(self, name: str, spot: Spot, first: int, other: Spot) -> Iterator[Part]:
        """What a layer whose rows from ``first`` on are at ``spot`` shares with ``name``, at ``other``."""
        (own_count, count) = self.counts((spot, other))
        for own, stored, length in stored_rows(spot, own_count):
            for theirs, place, size in stored_rows(other, count):
                low, high = max(stored, place), min(stored + length, place + size)
                if low < high:
                    rows = (first + own + low - stored, high - low)
                    yield Part(name, rows, (theirs + low - place, high - low, count))

    def _named(self, dialect: str) -> Mapping[str, list[tuple[str, Spot]]]:
        """{key: (name, place)} of the layers that ``dialect`` has; of several for some rows, the first."""
        if dialect not in self._named_in:
            named: dict[str, list[tuple[str, Spot]]] = {}
            for spot in {**self._paths.own, **self._paths.diffusers}:
                name = self.name_in(dialect, (spot,))
                own = named.setdefault(spot.key, [])
                if name is not None and not any(any(self._shared_rows("", spot, 0, s)) for _, s in own):
                    own.append((name, spot))
            self._named_in[dialect] = named
        return self._named_in[dialect]

    def parameters(self) -> dict[str, Spot]:
        """All that ComfyUI's module of this half has, by its path; biases of layers are not apart."""
        return {
            path: spot
            for spot, path in self._paths.own.items()
            if not path.endswith(".bias") or self.shape_of(spot.key.removesuffix("bias") + "weight") is None
        }

    # ---- what a layer is ------------------------------------------------------------------------

    def role(self, spots: Spots) -> Role | None:
        """What the layer at ``spots`` is in the model; None if the model's own name of it is not known."""
        first = spots[0]
        path = self._own_paths.get(first.key)
        if path is None:
            return None
        if self.is_text:
            inside = encoder_and_path(path)
            name, path = ("", path) if inside is None else inside
            return text_role(path, 1 + self.encoders.index(name) if name in self.encoders else 1)
        role = role_of(path)
        if first.part is not None and first.part[0] == 0:
            for family in self._families:
                for kind, rows in parts_of(path, self.shape_of(first.key) or (), family):
                    role = replace(role, kind=kind) if rows == first.part[1:] else role
        if len(spots) > 1 and role.kind.endswith((".q", ".k")):
            role = replace(role, kind=f"{role.kind.partition('.')[0]}.qkv")
        return role

    @cached_property
    def _own_paths(self) -> Mapping[str, str]:
        return {spot.key: path for spot, path in self._paths.own.items()}

    @cached_property
    def _families(self) -> list[Family]:
        return families_of({f"{path}.weight" for path in self._own_paths.values()})

    @cached_property
    def _paths(self) -> Paths:
        return self.find_paths()

    @cached_property
    def _kohya_follows_diffusers(self) -> bool:
        """Whether it is a UNet without SDXL's second embedding."""
        return bool(self.names.look_up("input_blocks.0.0")) and not self.names.look_up("label_emb.0.0")
