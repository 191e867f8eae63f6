"""Which layers of a stack have a place in a checkpoint, by names and shapes alone.

The same rules as beside a loaded model: a layer is placed whole or not at all; of several meanings of its
name the first counts that its shape fits; a layer that the checkpoint stores in pieces is cut into them, and
pieces that the checkpoint stores as one are slices of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...adapters import LayerAdapter
from ...errors import LycorisError, NeedsBaseError, ShapeMismatchError
from ...formats import is_text_layer
from ...models.checkpoint import CheckpointIndex, Place, Spot
from ...network import AdapterSet, Unmatched
from ..places import Places


@dataclass(frozen=True, eq=False)
class BakeEntry:
    """One file of a stack, and its multipliers for the diffusion model and for text encoders."""

    adapters: AdapterSet
    multiplier: float = 1.0
    clip_multiplier: float = 1.0


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to one spot: (adapter, multiplier) in order of application, and the layers' names."""

    spot: Spot
    entries: tuple[tuple[LayerAdapter, float], ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FilePlan:
    """What becomes of one file of the stack: which layers have a place, and which do not.

    ``left_out`` are sentences about what the checkpoint has no part for.
    """

    entry: BakeEntry
    placed: tuple[str, ...]
    unmatched: tuple[Unmatched, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Piece:
    """An adapter, or some of its rows, and where it goes."""

    adapter: LayerAdapter
    where: Place


class Matcher:
    """Places the layers of a stack, file by file, and collects what that changes."""

    def __init__(self, index: CheckpointIndex, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._places = Places(index, shapes)
        self._entries: dict[Spot, list[tuple[LayerAdapter, float]]] = defaultdict(list)
        self._layers: dict[Spot, list[str]] = defaultdict(list)

    def place(self, entry: BakeEntry) -> FilePlan:
        """Finds a place for each layer of one file."""
        index = self._places.index
        placed: list[str] = []
        unmatched = list(entry.adapters.unmatched)
        absent: dict[str, int] = defaultdict(int)
        for layer, adapter in entry.adapters.items():
            is_text = is_text_layer(layer) or (
                self._is_somewhere(layer, True) and not self._is_somewhere(layer)
            )
            names = index.text if is_text else index.model
            what = "text encoder" if is_text else "diffusion model"
            if not len(names):
                absent[what] += 1
                continue
            found = self._fit(layer, adapter, is_text)
            if isinstance(found, str):
                unmatched.append(Unmatched(layer, found))
                continue
            placed.append(layer)
            multiplier = entry.clip_multiplier if is_text else entry.multiplier
            for piece in found if multiplier != 0.0 else ():
                self._add(layer, piece, multiplier)
        left_out = [
            f"{count} {what} layers are left out: the file has no {what}" for what, count in absent.items()
        ]
        if entry.adapters.embeddings:
            words = ", ".join(f"'{name}'" for name in entry.adapters.embeddings)
            left_out.append(f"embeddings are left out: {words}: a checkpoint has no place for words")
        return FilePlan(entry, tuple(placed), tuple(unmatched), tuple(left_out))

    def changes(self) -> dict[str, tuple[Change, ...]]:
        """{key: what changes it}, each in the order in which its spots were first named."""
        found: dict[str, list[Change]] = defaultdict(list)
        for spot, entries in self._entries.items():
            names = tuple(dict.fromkeys(self._layers[spot]))
            found[spot.key].append(Change(spot, tuple(entries), names))
        return {key: tuple(own) for key, own in found.items()}

    def _add(self, layer: str, piece: _Piece, multiplier: float) -> None:
        adapter, where = piece.adapter, piece.where
        own = adapter if adapter.weight_components or adapter.magnitude or adapter.reshape else None
        for spot, part in ((where.weight, own), (where.bias, adapter.bias)):
            if spot is not None and part is not None:
                self._entries[spot].append((part, multiplier))
                self._layers[spot].append(layer)

    def _is_somewhere(self, layer: str, is_text: bool = False) -> bool:
        return next(self._places.meant_by(layer, is_text), None) is not None

    def _fit(self, layer: str, adapter: LayerAdapter, is_text: bool) -> list[_Piece] | str:
        """Where ``adapter`` goes, or the reason why the likeliest place cannot take it."""
        what = "text encoder" if is_text else "diffusion model"
        reasons: list[str] = []
        for places in self._places.meant_by(layer, is_text):
            try:
                return self._pieces(adapter, places)
            except ShapeMismatchError as error:
                reasons.append(f"{error}: it was trained for another model")
            except _UnsuitableError as error:
                reasons.append(f"{error} of the {what} has none" if error.of_bias else str(error))
            except LycorisError as error:
                reasons.append(str(error))
        return reasons[0] if reasons else f"the file's {what} has no such layer"

    def _pieces(self, adapter: LayerAdapter, places: tuple[Place, ...]) -> list[_Piece]:
        """``adapter`` at all of ``places``. Raises LycorisError or _UnsuitableError if one cannot take it."""
        shapes = [where.weight.shape(self._places.shapes) for where in places]
        whole = self._places.shape([where.weight for where in places])
        adapter.fits(whole)
        spot = places[0].weight
        if adapter.reshape is not None and spot != Spot(spot.key):
            raise _UnsuitableError("it enlarges a weight that this file stores as a part of another")
        if len(places) > 1:
            # What starts from the whole layer's weight would have to see all pieces at once.
            prepared = adapter.prepare(_no_base)
            starts = [sum(shape[0] for shape in shapes[:number]) for number in range(len(shapes))]
            rows = [
                prepared.rows(start, shape[0], whole[0]) for start, shape in zip(starts, shapes, strict=True)
            ]
        else:
            rows = [adapter]
        pieces = [_Piece(own, where) for own, where in zip(rows, places, strict=True)]
        for piece in pieces:
            bias = piece.adapter.bias
            if bias is not None and piece.where.bias is not None:
                bias.fits(piece.where.bias.shape(self._places.shapes))
            elif adapter.needs_bias:
                raise _UnsuitableError("it changes a bias, but this layer", of_bias=True)
        return pieces


class _UnsuitableError(Exception):
    """A place that cannot take a layer for a reason of the checkpoint's."""

    def __init__(self, message: str, *, of_bias: bool = False) -> None:
        super().__init__(message)
        self.of_bias = of_bias


def _no_base() -> Tensor:
    raise NeedsBaseError("it starts from the weight of the whole layer, which this file stores in pieces")
