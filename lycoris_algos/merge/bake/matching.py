"""Finds which tensors of a checkpoint each layer of a stack changes, by names and shapes alone.

The same rules as beside a loaded model: a layer is placed whole or not at all; of several meanings of its
name the first counts that its shape fits; a layer that the checkpoint stores in pieces is cut into them, and
pieces that the checkpoint stores as one are slices of it. What cannot be cut, because a row of the change
depends on rows of other pieces, changes all pieces together: a patch of a loaded model sees one of them, but
here all are at hand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from ...adapters import LayerAdapter
from ...errors import NeedsBaseError, SiblingRowsError
from ...model_files import LayerIndex, ModelIndex, doubts
from ...model_files.places import AdapterRows, Spots, pieces_of
from ...models import Role
from ...network import StackEntry, Unmatched
from ...text import Brief, listed, quoted


@dataclass(frozen=True, eq=False)
class PlannedChange(Brief):
    """What is added to a layer: (what, multiplier) in order of application, and the layers' names.

    ``spots`` is where; several where the adapters have to see all pieces in which the file stores the layer.
    """

    spots: Spots
    entries: tuple[tuple[AdapterRows, float], ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FilePlan(Brief):
    """What becomes of one file of the stack: which layers have a place, and which do not.

    ``left_out`` are sentences about what the checkpoint has no part for; ``doubled`` are layers that change
    the same weight as others of the file, and what was done about it; ``doubts`` are sentences about whether
    the file was made for this model.
    """

    entry: StackEntry
    placed: tuple[str, ...]
    unmatched: tuple[Unmatched, ...]
    left_out: tuple[str, ...]
    role: Callable[[str], Role | None]
    doubled: tuple[Unmatched, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Step(Brief):
    """A change (an adapter or rows of one) and the spots of the checkpoint that it changes."""

    spots: Spots
    added: AdapterRows


class Matcher:
    """Places the layers of a stack, file by file, and collects what that changes."""

    def __init__(self, index: ModelIndex[LayerIndex]) -> None:
        self._index = index
        #: (layer, what is added, multiplier) by spots, and by how many changes of several spots went before.
        self._entries: dict[tuple[Spots, int], list[tuple[str, AdapterRows, float]]] = defaultdict(list)
        self._joint: dict[str, int] = defaultdict(int)

    def place(self, entry: StackEntry) -> FilePlan:
        """Finds a place for each layer of one file."""
        adapters = entry.adapters

        def steps(layer: str, half: LayerIndex, spots: Spots) -> list[_Step]:
            return _steps(adapters[layer], half, spots)

        placement = self._index.place(adapters, steps)
        for layer, place in placement.placed.items():
            multiplier = entry.multiplier(layer, place.is_text, placement.role)
            for step in place.made if multiplier != 0.0 else ():
                self._add(layer, step, multiplier)
        left_out = [
            f"{count} {what} layers are left out: the file has no {what}"
            for what, count in Counter(map(_half, placement.left_out.values())).items()
        ]
        if adapters.embeddings:
            words = listed(adapters.embeddings, show=quoted)
            left_out.append(f"embeddings are left out: {words}: a checkpoint has no place for words")
        unmatched = (*adapters.unmatched, *placement.unmatched)
        placed, total = tuple(placement.placed), len(adapters) - len(placement.left_out)
        return FilePlan(
            entry,
            placed,
            unmatched,
            tuple(left_out),
            placement.role,
            placement.doubled,
            tuple(doubts(adapters, self._index, len(placed), total)),
        )

    def changes(self) -> dict[str, tuple[PlannedChange, ...]]:
        """{key: what changes it}, each in the order in which its spots were first named.

        Tensors that hold pieces of one layer have all changes in common, if an adapter has to see them all.
        """
        changes = [
            PlannedChange(
                spots,
                tuple((added, multiplier) for _, added, multiplier in entries),
                tuple(dict.fromkeys(layer for layer, _, _ in entries)),
            )
            for (spots, _), entries in self._entries.items()
        ]
        together: dict[str, frozenset[str]] = {}
        for change in changes:
            own = [spot.key for spot in change.spots]
            keys = frozenset(own).union(*(together.get(key, ()) for key in own))
            together.update(dict.fromkeys(keys, keys))
        sharing: dict[frozenset[str], list[PlannedChange]] = defaultdict(list)
        for change in changes:
            sharing[together[change.spots[0].key]].append(change)
        shared = {keys: tuple(own) for keys, own in sharing.items()}
        return {key: shared[keys] for key, keys in together.items()}

    def _add(self, layer: str, step: _Step, multiplier: float) -> None:
        # Entries of the same spots are one change, unless one of several spots came in between, which has to
        # see what those before it made, and be seen by those after.
        keys = [spot.key for spot in step.spots]
        before = max(self._joint[key] for key in keys)
        self._entries[step.spots, before].append((layer, step.added, multiplier))
        if len(keys) > 1:
            self._joint.update(dict.fromkeys(keys, before + 1))


def _half(is_text: bool) -> str:
    return "text encoder" if is_text else "diffusion model"


def _steps(adapter: LayerAdapter, half: LayerIndex, spots: Spots) -> list[_Step]:
    """``adapter`` at all of ``spots``. Raises LycorisError if one cannot take it."""
    half.check(adapter, spots)
    steps = []
    if adapter.weight_components or adapter.magnitude or adapter.reshape:
        steps += _weight_steps(adapter, half, spots)
    biases = half.bias_places(adapter, spots)
    return [*steps, *(_Step((found[1],), found[0]) for found in biases if found is not None)]


def _weight_steps(adapter: LayerAdapter, half: LayerIndex, spots: Spots) -> list[_Step]:
    pieces = pieces_of(adapter, half.counts(spots))
    if len(spots) > 1:
        try:
            for spot, piece in zip(spots, pieces, strict=True):
                piece.structure(half.shape((spot,)) or ())
        except (NeedsBaseError, SiblingRowsError):
            return [_Step(spots, AdapterRows(adapter))]
    return [_Step((spot,), piece) for spot, piece in zip(spots, pieces, strict=True)]
