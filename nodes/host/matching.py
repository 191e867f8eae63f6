"""Adapter files against a model: what goes where, what does not and why, and the patches that follow.

Nothing here changes a model. A layer is placed whole or not at all: its weight and its bias must both be
there and have the right shape, otherwise the layer is listed with the reason. What to do about unplaced
layers is the caller's decision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from ...lycoris_algos import AdapterSet, LayerAdapter
from ...lycoris_algos.model_files import ModelIndex, Placement, Spots
from ...lycoris_algos.model_files.places import row_ranges
from ...lycoris_algos.ops.rows import stacked
from ...lycoris_algos.structures import Structure
from ...lycoris_algos.text import Brief
from .keymap import Target, Targets, mapping, target_of
from .patch import LycorisPatch


@dataclass(frozen=True, eq=False)
class Placed(Brief):
    """A layer of a file, or a piece of it, the weight that it changes if it does, and all of its changes."""

    layer: str
    adapter: LayerAdapter
    weight: Target | None
    changes: tuple[tuple[Target, Structure], ...]


Match = Placement[Targets, list[Placed]]


def match(adapters: AdapterSet, known: ModelIndex[Targets]) -> Match:
    """Looks up the layers of ``adapters`` in ``known``, comparing shapes."""

    def placed(layer: str, targets: Targets, spots: Spots) -> list[Placed]:
        return _placed(layer, adapters[layer], targets, spots)

    return known.place(adapters, placed)


def placed_in(match: Match, is_text: bool) -> Iterator[Placed]:
    """What of ``match`` is in the text encoders, or in the diffusion model."""
    return (item for place in match.placed.values() if place.is_text == is_text for item in place.made)


def _placed(layer: str, adapter: LayerAdapter, targets: Targets, spots: Spots) -> list[Placed]:
    """``adapter`` at all of ``spots``. Raises LycorisError if one cannot take it."""
    targets.check(adapter, spots)
    biases = targets.bias_places(adapter, spots)
    weights = _weight_changes(adapter, spots, targets) if adapter.weight_components else [None] * len(spots)
    placed = []
    for spot, weight, bias in zip(spots, weights, biases, strict=True):
        changes = [] if weight is None else [(target_of(spot), weight)]
        if bias is not None:
            added, where = bias
            changes.append((target_of(where), added.structure(targets.shape((where,)) or ())))
        placed.append(Placed(layer, adapter, None if weight is None else target_of(spot), tuple(changes)))
    return placed


def _weight_changes(adapter: LayerAdapter, spots: Spots, targets: Targets) -> list[Structure]:
    """What ``adapter`` does at each of ``spots``."""
    whole = _MADE.structure(adapter, spots, targets)
    if len(spots) == 1:
        return [whole]
    return [adapter.rows(whole, *rows) for rows in row_ranges(targets.counts(spots))]


class _Made:
    """The structure of each adapter that was made last, for as long as its file is loaded.

    A changed strength runs the node again, but an inverse or a singular value decomposition of every layer
    need not be done again.
    """

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[LayerAdapter, tuple[ref[Any], Spots, Structure]] = WeakKeyDictionary()

    def structure(self, adapter: LayerAdapter, spots: Spots, targets: Targets) -> Structure:
        """What ``adapter`` does to the weights at ``spots``, row by row."""
        model = targets.patcher.model
        last = self._last.get(adapter)
        if last is not None and last[0]() is model and last[1] == spots:
            return last[2]
        shape = targets.shape(spots) or ()
        made = adapter.structure(shape, base=lambda: stacked([targets.base_weight(spot) for spot in spots]))
        self._last[adapter] = (ref(model), spots, made)
        return made


_MADE = _Made()


def patches(files: Iterable[Sequence[tuple[Placed, float]]]) -> dict[Target, LycorisPatch]:
    """One patch per parameter out of (what is placed, multiplier) of each file, in order of application.

    What has multiplier 0 adds nothing, so that its weights stay bit-identical.
    """
    entries: dict[Target, list[tuple[Structure, float]]] = defaultdict(list)
    names: dict[Target, set[str]] = defaultdict(set)
    for placed in files:
        for item, multiplier in placed:
            for target, change in item.changes if multiplier != 0.0 else ():
                entries[target].append((change, multiplier))
                names[target].add(item.layer)
    return {target: LycorisPatch.of(own, names[target], mapping(target)) for target, own in entries.items()}
