"""Adapter files against a model: what goes where, what does not and why, and the patches that follow.

Nothing here changes a model. A layer is placed whole or not at all: its weight and its bias must both be
there and have the right shape, otherwise the layer is listed with the reason. What to do about unplaced
layers is the caller's decision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from ...lycoris_algos import AdapterSet, LayerAdapter, LycorisError, ShapeMismatchError, Unmatched
from ...lycoris_algos.ops.rows import stacked
from .keymap import Place, Targets
from .names import Target
from .patch import FUNCTION, LycorisPatch


@dataclass(frozen=True, eq=False)
class Placed:
    """A layer of a file, or a piece of it, and the parameters of the model that it changes."""

    layer: str
    adapter: LayerAdapter
    weight: Target | None
    bias: Target | None


@dataclass(frozen=True, eq=False)
class Match:
    """What became of the layers of one file."""

    placed: tuple[Placed, ...]
    unmatched: tuple[Unmatched, ...]


def match(adapters: AdapterSet, layers: Iterable[str], targets: Targets) -> Match:
    """Looks up ``layers`` of ``adapters`` among ``targets``, comparing shapes."""
    placed: list[Placed] = []
    unmatched: list[Unmatched] = []
    for layer in layers:
        found = _place(layer, adapters[layer], targets)
        if isinstance(found, str):
            unmatched.append(Unmatched(layer, found))
        else:
            placed += found
    return Match(tuple(placed), tuple(unmatched))


def _place(layer: str, adapter: LayerAdapter, targets: Targets) -> list[Placed] | str:
    """Where ``adapter`` goes, or the reason why the likeliest place cannot take it."""
    reasons: list[str] = []
    for places in targets.find(layer):
        try:
            return _placed(layer, adapter, places, targets)
        except ShapeMismatchError as error:
            reasons.append(f"{error}: it was trained for another model")
        except (LycorisError, _UnsuitableError) as error:
            reasons.append(str(error))
    return reasons[0] if reasons else f"{targets.what} has no such layer"


class _UnsuitableError(Exception):
    """A place that cannot take a layer for a reason of the model's."""


def _placed(layer: str, adapter: LayerAdapter, places: tuple[Place, ...], targets: Targets) -> list[Placed]:
    """``adapter`` at all of ``places``. Raises LycorisError or _UnsuitableError if one cannot."""
    shape = targets.shape(places[0].target) or ()
    if places[0].rows is not None:
        shape = (places[0].rows[2], *shape[1:])
    adapter.fits(shape)
    biases = [_bias(adapter, place, targets) for place in places]
    if adapter.reshape is not None and not isinstance(places[0].target, str):
        raise _UnsuitableError("it enlarges a weight that this model stores as a part of another")
    if adapter.needs_weight and any(targets.mapping(place.target) == FUNCTION for place in places):
        titles = " + ".join(adapter.titles)
        raise _UnsuitableError(f"{titles} depends on the weight, which this model stores in another order")
    prepared = _prepared(adapter, places, targets)
    return [
        Placed(layer, _piece(prepared, place), place.target if adapter.weight_components else None, bias)
        for place, bias in zip(places, biases, strict=True)
    ]


def _piece(adapter: LayerAdapter, place: Place) -> LayerAdapter:
    return adapter if place.rows is None else adapter.rows(*place.rows)


def _bias(adapter: LayerAdapter, place: Place, targets: Targets) -> Target | None:
    """The target of what ``adapter`` does to the bias at ``place``, if it does anything and there is one."""
    if adapter.bias is None:
        return None
    bias = targets.bias_of(place.target)
    shape = None if bias is None else targets.shape(bias)
    if shape is not None:
        _piece(adapter.bias, place).fits(shape)
    elif adapter.needs_bias:
        raise _UnsuitableError(f"it changes a bias, but this layer of {targets.what} has none")
    return bias


# What `prepare` worked out last, for as long as the file is loaded: a changed strength runs the node again,
# but an inverse or a singular value decomposition of every layer need not be done again.
_PREPARED: WeakKeyDictionary[LayerAdapter, tuple[ref[Any], tuple[Place, ...], LayerAdapter]] = (
    WeakKeyDictionary()
)


def _prepared(adapter: LayerAdapter, places: tuple[Place, ...], targets: Targets) -> LayerAdapter:
    model = targets.patcher.model
    known = _PREPARED.get(adapter)
    if known is not None and known[0]() is model and known[1] == places:
        return known[2]
    prepared = adapter.prepare(lambda: stacked([targets.base_weight(place.target) for place in places]))
    _PREPARED[adapter] = (ref(model), places, prepared)
    return prepared


def patches(matches: Iterable[tuple[Match, float]], targets: Targets) -> dict[Target, LycorisPatch]:
    """One patch per parameter out of (match, multiplier) of each file, in order of application.

    Files with multiplier 0 add nothing, so that their weights stay bit-identical.
    """
    entries: dict[Target, list[tuple[LayerAdapter, float]]] = defaultdict(list)
    names: dict[Target, set[str]] = defaultdict(set)
    for found, multiplier in matches:
        if multiplier == 0.0:
            continue
        for item in found.placed:
            for target, adapter in ((item.weight, item.adapter), (item.bias, item.adapter.bias)):
                if target is not None and adapter is not None:
                    entries[target].append((adapter, multiplier))
                    names[target].add(item.layer)
    return {
        target: LycorisPatch.of(own, names[target], targets.mapping(target))
        for target, own in entries.items()
    }
