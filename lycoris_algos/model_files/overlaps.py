"""Layers of one file that change the same numbers of a model, and which of them are used.

A file may hold a layer under two names, or a fused layer beside its parts: a copy that a converter left,
leftovers that were never trained, or two trained changes. Such layers are sorted into *versions*: layers of
one version do not meet. One version is used. Only a file that was combined of others means their sum.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters import LayerAdapter
from ..errors import LycorisError
from ..network import AdapterSet, Unmatched
from ..network.recipe import RECIPE
from ..text import Brief, quoted
from .layers import LayerIndex
from .places import Spot, Spots, row_ranges, seen, swap_halves

#: Where layers are: {layer: (half of the model, spots)}.
Places = Mapping[str, tuple[LayerIndex, Spots]]

# No file has more; each costs computing its change.
_MOST_VERSIONS = 8
# Changes are compared by what they make of so many random inputs.
_PROBES = 4
# Two changes are the same up to the rounding of their factors to half precision.
_ROUNDING = 1e-2
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Overlaps(Brief):
    """Layers of one file that meet: those that are not used, and what was done about each."""

    unused: frozenset[str] = frozenset()
    notes: tuple[Unmatched, ...] = ()


def overlaps(adapters: AdapterSet, places: Places) -> Overlaps:
    """Which of the layers of ``adapters`` at ``places`` meet others, and are not used for it."""
    unused: set[str] = set()
    notes: list[Unmatched] = []
    for group in _meeting(places):
        versions, more = _versions(group, places)
        for layer, reason, is_used in _verdicts(versions, more, adapters, places):
            notes.append(Unmatched(layer, reason))
            if not is_used:
                unused.add(layer)
    return Overlaps(frozenset(unused), tuple(notes))


def overlap(one: tuple[int, int, int] | None, other: tuple[int, int, int] | None) -> bool:
    """Whether two parts (dim, start, length) of a parameter may share a number; None is all of it."""
    if one is None or other is None or one[0] != other[0]:
        return True
    return one[1] < other[1] + other[2] and other[1] < one[1] + one[2]


# ---- which layers meet ----------------------------------------------------------------------------------


def _meeting(places: Places) -> Iterator[list[str]]:
    """Layers that change the same numbers, together with all that they meet, in the order of the file."""
    at: dict[Hashable, list[tuple[str, Spot]]] = defaultdict(list)
    for layer, (half, spots) in places.items():
        for spot in spots:
            at[half.is_text, spot.key].append((layer, spot))
    group_of: dict[str, list[str]] = {}
    for own in at.values():
        for layers in _runs(own) if len(own) > 1 else ():
            joined = list(dict.fromkeys(name for layer in layers for name in group_of.get(layer, [layer])))
            group_of.update(dict.fromkeys(joined, joined))
    order = {layer: number for number, layer in enumerate(places)}
    for group in {id(group): group for group in group_of.values()}.values():
        yield sorted(group, key=order.__getitem__)


def _runs(own: Sequence[tuple[str, Spot]]) -> Iterator[list[str]]:
    """Of the layers at one parameter, those that overlap: every run of intervals that do, of two or more."""
    several = len({spot.part[0] for _, spot in own if spot.part is not None}) > 1
    ends = sorted((*_interval(spot, several), number) for number, (_, spot) in enumerate(own))
    run: list[str] = []
    reached = -1.0
    for start, end, number in ends:
        if start >= reached and run:
            if len(run) > 1:
                yield run
            run = []
        run.append(own[number][0])
        reached = max(reached, end)
    if len(run) > 1:
        yield run


def _interval(spot: Spot, several: bool) -> tuple[float, float]:
    if spot.part is None or several:
        return 0.0, math.inf
    return spot.part[1], spot.part[1] + spot.part[2]


def _versions(group: Sequence[str], places: Places) -> tuple[list[list[str]], list[str]]:
    """``group`` in versions whose layers do not meet, and what finds no place in them."""
    versions: list[list[str]] = []
    taken: list[dict[str, list[Spot]]] = []
    more: list[str] = []
    for layer in group:
        spots = places[layer][1]
        free = (n for n, own in enumerate(taken) if not any(_meets(spot, own) for spot in spots))
        number = next(free, len(versions))
        if number == _MOST_VERSIONS:
            more.append(layer)
            continue
        if number == len(versions):
            versions.append([])
            taken.append({})
        versions[number].append(layer)
        for spot in spots:
            taken[number].setdefault(spot.key, []).append(spot)
    return versions, more


def _meets(spot: Spot, taken: Mapping[str, Sequence[Spot]]) -> bool:
    return any(overlap(spot.part, other.part) for other in taken.get(spot.key, ()))


# ---- which version is used ------------------------------------------------------------------------------


def _verdicts(
    versions: Sequence[list[str]], more: Sequence[str], adapters: AdapterSet, places: Places
) -> Iterator[tuple[str, str, bool]]:
    """(layer, what was done and why, whether it is used) for each that is not of the version used."""
    layers = [layer for own in versions for layer in own]
    trained = {layer for layer in layers if not _is_untrained(adapters[layer], *places[layer])}
    sizes = [sum(_rows(*places[layer]) for layer in own if layer in trained) for own in versions]
    best = sizes.index(max(sizes))
    name = quoted(_NUMBER.sub("*", versions[best][0]))
    effect = _effect(versions[best], adapters, places)
    is_sum = RECIPE in adapters.metadata
    for number, own in enumerate(versions):
        if number == best:
            continue
        again = _is_contained(_effect(own, adapters, places), effect) or _is_copy(
            own, versions[best], adapters, places
        )
        for layer in own:
            if again:
                yield layer, f"the same change as that of {name}: made once", False
            elif layer not in trained:
                yield layer, f"never trained, it changes nothing; {name} changes the same weight", False
            elif is_sum:
                yield (
                    layer,
                    f"changes the same weight as {name}: both are used, as the file was combined",
                    True,
                )
            else:
                why = "changes more of it" if sizes[best] > sizes[number] else "comes first in the file"
                yield layer, f"another change of the weight than {name}, which is used, as it {why}", False
    for layer in more:
        yield layer, f"one of too many changes of the same weight; {name} is used", False


def _rows(half: LayerIndex, spots: Spots) -> int:
    return math.prod(half.shape(spots) or ())


def _is_untrained(adapter: LayerAdapter, half: LayerIndex, spots: Spots) -> bool:
    """Whether its algorithm leaves weights as they are; DoRA's magnitude is then that of the base."""
    stored = [value for item in adapter.weight_components for _, value in item.tensors()]
    if adapter.bias is not None or adapter.reshape is not None or all(map(_any, stored)):
        return False
    try:
        return float(_probed(replace(adapter, magnitude=None), half, spots).abs().max()) <= 1e-5
    except LycorisError:
        return False


def _any(value: Tensor) -> bool:
    return bool((value.float() if value.element_size() == 1 else value).any())


def _is_copy(own: Sequence[str], other: Sequence[str], adapters: AdapterSet, places: Places) -> bool:
    """Whether both are one layer of the same tensors at the same place."""
    if len(own) != 1 or len(other) != 1 or places[own[0]][1] != places[other[0]][1]:
        return False
    one, two = adapters[own[0]].to_tensors(), adapters[other[0]].to_tensors()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


#: {key: (the change times probes, by rows; which rows are changed)}
_Effect = dict[str, tuple[Tensor, Tensor]]


def _is_contained(part: _Effect | None, whole: _Effect | None) -> bool:
    """Whether all that ``part`` changes is changed in the same way by ``whole``."""
    if part is None or whole is None or not part.keys() <= whole.keys():
        return False
    for key, (value, rows) in part.items():
        other = whole[key][0][rows]
        if float((value[rows] - other).norm()) > _ROUNDING * float(other.norm()):
            return False
    return True


def _effect(layers: Sequence[str], adapters: AdapterSet, places: Places) -> _Effect | None:
    """What ``layers`` do to a random model; None where that cannot be compared row by row."""
    effect: _Effect = {}
    for layer in layers:
        half, spots = places[layer]
        adapter = adapters[layer]
        if adapter.reshape is not None or not all(_is_of_rows(spot) for spot in spots):
            return None
        try:
            if adapter.weight_components:
                change = _probed(adapter, half, spots)
                for spot, (start, count, _) in zip(spots, row_ranges(half.counts(spots)), strict=True):
                    _put(effect, half, spot, change[start : start + count])
            for place in half.bias_places(adapter, spots):
                if place is not None:
                    own, spot = place
                    shape = half.shape((spot,)) or ()
                    structure = own.structure(shape).cast(torch.device("cpu"), torch.float32)
                    _put(effect, half, spot, structure.delta().reshape(shape[0], -1))
        except (LycorisError, TypeError):
            return None
    return effect


def _is_of_rows(spot: Spot) -> bool:
    return not spot.transposed and spot.function is None and (spot.part is None or spot.part[0] == 0)


def _put(effect: _Effect, half: LayerIndex, spot: Spot, change: Tensor) -> None:
    shape = half.shape_of(spot.key) or ()
    rows = shape[0] if shape else 1
    if spot.key not in effect:
        effect[spot.key] = torch.zeros(rows, change.shape[1]), torch.zeros(rows, dtype=torch.bool)
    value, changed = effect[spot.key]
    start, count = (0, rows) if spot.part is None else spot.part[1:]
    value[start : start + count] = swap_halves(change) if spot.swapped else change
    changed[start : start + count] = True


def _probed(adapter: LayerAdapter, half: LayerIndex, spots: Spots) -> Tensor:
    """The change of the rows of ``spots``, times random inputs: (rows, probes)."""
    shape = half.shape(spots) or ()
    rows = shape[0] if shape else 1
    probe = _random((math.prod(shape[1:]), _PROBES), 1)
    if adapter.needs_weight:
        weights = [_random(half.shape_of(spot.key) or (), 2) for spot in spots]
        weight = torch.cat([seen(own, spot) for own, spot in zip(weights, spots, strict=True)])
        return adapter.delta(weight).reshape(rows, -1).cpu() @ probe
    factors = adapter.low_rank(shape)
    if factors is None:
        return adapter.delta(shape).reshape(rows, -1).float().cpu() @ probe
    up, down = (factor.float().cpu() for factor in factors)
    return up @ (down @ probe)


def _random(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
