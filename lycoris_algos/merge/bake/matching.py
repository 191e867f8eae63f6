"""Which layers of a stack have a place in a checkpoint, by names and shapes alone.

The same rules as beside a loaded model: a layer is placed whole or not at all; of several meanings of its
name the first counts that its shape fits; a layer that the checkpoint stores in pieces is cut into them, and
pieces that the checkpoint stores as one are slices of it. What cannot be cut, because a row of the change
depends on rows of other pieces, changes all pieces together: a patch of a loaded model sees one of them, but
here all are at hand.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...adapters import LayerAdapter
from ...errors import LycorisError, NeedsBaseError, ShapeMismatchError, SiblingRowsError
from ...formats import is_text_layer
from ...models.checkpoint import CheckpointIndex, Place, Spot
from ...network import StackEntry, Unmatched
from ..places import Places


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to a layer: (adapter, multiplier) in order of application, and the layers' names.

    ``spots`` is where; several where the adapters have to see all pieces in which the file stores the layer.
    """

    spots: tuple[Spot, ...]
    entries: tuple[tuple[LayerAdapter, float], ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FilePlan:
    """What becomes of one file of the stack: which layers have a place, and which do not.

    ``left_out`` are sentences about what the checkpoint has no part for.
    """

    entry: StackEntry
    placed: tuple[str, ...]
    unmatched: tuple[Unmatched, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Step:
    """An adapter, or some of its rows, and the spots that it changes."""

    spots: tuple[Spot, ...]
    adapter: LayerAdapter


class Matcher:
    """Places the layers of a stack, file by file, and collects what that changes."""

    def __init__(self, index: CheckpointIndex, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._places = Places(index, shapes)
        #: (layer, adapter, multiplier) by spots, and by how many changes of several spots went before.
        self._entries: dict[tuple[tuple[Spot, ...], int], list[tuple[str, LayerAdapter, float]]] = (
            defaultdict(list)
        )
        self._joint: dict[str, int] = defaultdict(int)

    def place(self, entry: StackEntry) -> FilePlan:
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
            multiplier = entry.multiplier(is_text)
            for step in found if multiplier != 0.0 else ():
                self._add(layer, step, multiplier)
        left_out = [
            f"{count} {what} layers are left out: the file has no {what}" for what, count in absent.items()
        ]
        if entry.adapters.embeddings:
            words = ", ".join(f"'{name}'" for name in entry.adapters.embeddings)
            left_out.append(f"embeddings are left out: {words}: a checkpoint has no place for words")
        return FilePlan(entry, tuple(placed), tuple(unmatched), tuple(left_out))

    def changes(self) -> dict[str, tuple[Change, ...]]:
        """{key: what changes it}, each in the order in which its spots were first named.

        Tensors that hold pieces of one layer have all changes in common, if an adapter has to see them all.
        """
        changes = [
            Change(
                spots,
                tuple((adapter, multiplier) for _, adapter, multiplier in entries),
                tuple(dict.fromkeys(layer for layer, _, _ in entries)),
            )
            for (spots, _), entries in self._entries.items()
        ]
        together: dict[str, frozenset[str]] = {}
        for change in changes:
            own = [spot.key for spot in change.spots]
            keys = frozenset(own).union(*(together.get(key, ()) for key in own))
            together.update(dict.fromkeys(keys, keys))
        found: dict[frozenset[str], list[Change]] = defaultdict(list)
        for change in changes:
            found[together[change.spots[0].key]].append(change)
        shared = {keys: tuple(own) for keys, own in found.items()}
        return {key: shared[keys] for key, keys in together.items()}

    def _add(self, layer: str, step: _Step, multiplier: float) -> None:
        # Entries of the same spots are one change, unless one of several spots came in between, which has to
        # see what those before it made, and be seen by those after.
        keys = [spot.key for spot in step.spots]
        before = max(self._joint[key] for key in keys)
        self._entries[step.spots, before].append((layer, step.adapter, multiplier))
        if len(keys) > 1:
            self._joint.update(dict.fromkeys(keys, before + 1))

    def _is_somewhere(self, layer: str, is_text: bool = False) -> bool:
        return next(self._places.meant_by(layer, is_text), None) is not None

    def _fit(self, layer: str, adapter: LayerAdapter, is_text: bool) -> list[_Step] | str:
        """Where ``adapter`` goes, or the reason why the likeliest place cannot take it."""
        what = "text encoder" if is_text else "diffusion model"
        reasons: list[str] = []
        for places in self._places.meant_by(layer, is_text):
            try:
                return self._steps(adapter, places)
            except ShapeMismatchError as error:
                reasons.append(f"{error}: it was trained for another model")
            except _UnsuitableError as error:
                reasons.append(f"{error} of the {what} has none" if error.of_bias else str(error))
            except LycorisError as error:
                reasons.append(str(error))
        return reasons[0] if reasons else f"the file's {what} has no such layer"

    def _steps(self, adapter: LayerAdapter, places: tuple[Place, ...]) -> list[_Step]:
        """``adapter`` at all of ``places``. Raises LycorisError or _UnsuitableError if one cannot take it."""
        shapes = self._places.shapes
        spots = tuple(where.weight for where in places)
        adapter.fits(self._places.shape(spots))
        if adapter.reshape is not None and spots != (Spot(spots[0].key),):
            raise _UnsuitableError("it enlarges a weight that this file stores in pieces or as a part of one")
        counts = [math.prod(spot.shape(shapes)[:1]) for spot in spots]
        steps = []
        if adapter.weight_components or adapter.magnitude or adapter.reshape:
            steps += _weight_steps(adapter, spots, counts)
        if adapter.bias is None:
            return steps
        for where, bias in zip(places, rows_of(adapter.bias, counts), strict=True):
            if where.bias is not None:
                bias.fits(where.bias.shape(shapes))
                steps.append(_Step((where.bias,), bias))
            elif adapter.needs_bias:
                raise _UnsuitableError("it changes a bias, but this layer", of_bias=True)
        return steps


def _weight_steps(adapter: LayerAdapter, spots: tuple[Spot, ...], counts: Sequence[int]) -> list[_Step]:
    if len(spots) == 1:
        return [_Step(spots, adapter)]
    try:
        rows = rows_of(adapter.prepare(_no_base), counts)
    except (NeedsBaseError, SiblingRowsError):
        return [_Step(spots, adapter)]
    return [_Step((spot,), own) for spot, own in zip(spots, rows, strict=True)]


def rows_of(adapter: LayerAdapter, counts: Sequence[int]) -> list[LayerAdapter]:
    """``adapter`` cut into pieces of so many rows. Raises SiblingRowsError where it cannot be."""
    if len(counts) == 1:
        return [adapter]
    total = sum(counts)
    return [adapter.rows(sum(counts[:number]), count, total) for number, count in enumerate(counts)]


class _UnsuitableError(Exception):
    """A place that cannot take a layer for a reason of the checkpoint's."""

    def __init__(self, message: str, *, of_bias: bool = False) -> None:
        super().__init__(message)
        self.of_bias = of_bias


def _no_base() -> Tensor:
    raise NeedsBaseError("it starts from the weight of the whole layer")
