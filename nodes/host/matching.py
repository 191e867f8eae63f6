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
from .keymap import Target, Targets
from .patch import FUNCTION, LycorisPatch


@dataclass(frozen=True, eq=False)
class Placed:
    """A layer of a file, and the parameters of the model that it changes."""

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
        if isinstance(found, Placed):
            placed.append(found)
        else:
            unmatched.append(Unmatched(layer, found))
    return Match(tuple(placed), tuple(unmatched))


def _place(layer: str, adapter: LayerAdapter, targets: Targets) -> Placed | str:
    """Where ``adapter`` goes, or the reason why it cannot go anywhere."""
    target = targets.find(layer)
    shape = None if target is None else targets.shape(target)
    if target is None or shape is None:
        return f"{targets.what} has no such layer"
    bias = None
    try:
        adapter.fits(shape)
        if adapter.bias is not None:
            bias = targets.bias_of(target)
            bias_shape = None if bias is None else targets.shape(bias)
            if bias_shape is not None:
                adapter.bias.fits(bias_shape)
            elif adapter.needs_bias:
                return f"it changes a bias, but this layer of {targets.what} has none"
        if adapter.reshape is not None and not isinstance(target, str):
            return "it enlarges a weight that this model stores as a part of another"
        if adapter.needs_weight and targets.mapping(target) == FUNCTION:
            titles = " + ".join(adapter.titles)
            return f"{titles} depends on the weight, which this model stores in another order"
        prepared = _prepared(adapter, target, targets)
    except ShapeMismatchError as error:
        return f"{error}: it was trained for another model"
    except LycorisError as error:
        return str(error)
    return Placed(layer, prepared, target if adapter.weight_components else None, bias)


# What `prepare` worked out last, for as long as the file is loaded: a changed strength runs the node again,
# but an inverse or a singular value decomposition of every layer need not be done again.
_PREPARED: WeakKeyDictionary[LayerAdapter, tuple[ref[Any], Target, LayerAdapter]] = WeakKeyDictionary()


def _prepared(adapter: LayerAdapter, target: Target, targets: Targets) -> LayerAdapter:
    model = targets.patcher.model
    known = _PREPARED.get(adapter)
    if known is not None and known[0]() is model and known[1] == target:
        return known[2]
    prepared = adapter.prepare(lambda: targets.base_weight(target))
    _PREPARED[adapter] = (ref(model), target, prepared)
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
