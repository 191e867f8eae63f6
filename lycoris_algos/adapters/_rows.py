"""Cuts an adapter into rows of its layer, and lays several one below the other, as they are stored.

Some models fuse layers that others keep apart: queries, keys and values. What changes some rows of a weight
is then an adapter of its own in one file, and a part of a larger one in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ._base import Extra
from ._layer import LayerAdapter
from ._stored import Stored


def row_part(layer: LayerAdapter, start: int, count: int) -> LayerAdapter | None:
    """``count`` rows of ``layer`` from ``start`` on, which change what those rows did, exactly.

    None where what it stores has no such rows: it mixes them, or takes norms over them.
    """
    if layer.reshape is not None:
        return None
    own = [*layer.weight_components, *layer.bias_extras]
    cut: list[Stored | None] = [item.row_part(start, count) for item in own]
    magnitude = None if layer.magnitude is None else layer.magnitude.row_part(start, count)
    if None in cut or (magnitude is None) != (layer.magnitude is None):
        return None
    algorithm = None if layer.algorithm is None else layer.algorithm.row_part(start, count)
    return LayerAdapter(
        algorithm,
        tuple(part for extra in layer.extras if (part := extra.row_part(start, count)) is not None),
        tuple(part for extra in layer.bias_extras if (part := extra.row_part(start, count)) is not None),
        magnitude,
    )


def of_row_parts(parts: Sequence[tuple[int, LayerAdapter]], total: int) -> LayerAdapter | None:
    """One adapter of ``total`` rows out of ``parts``, each with its first row; overlapping ones add up.

    Rows of no part are left alone. None where no stored form holds that exactly.
    """
    layers = [layer for _, layer in parts]
    if any(layer.reshape is not None for layer in layers):
        return None
    algorithms = [(start, layer.algorithm) for start, layer in parts if layer.algorithm is not None]
    magnitudes = [(start, layer.magnitude) for start, layer in parts if layer.magnitude is not None]
    if len({type(item) for _, item in algorithms}) > 1 or len({type(item) for _, item in magnitudes}) > 1:
        return None
    algorithm = algorithms[0][1].of_row_parts(algorithms, total) if algorithms else None
    magnitude = magnitudes[0][1].of_row_parts(magnitudes, total) if magnitudes else None
    extras = _extras([(start, layer.extras) for start, layer in parts], total)
    biases = _extras([(start, layer.bias_extras) for start, layer in parts], total)
    incomplete = (algorithms and algorithm is None) or (magnitudes and magnitude is None)
    if incomplete or extras is None or biases is None:
        return None
    return replace(LayerAdapter(algorithm, extras, biases), magnitude=magnitude)


def _extras(parts: Sequence[tuple[int, tuple[Extra, ...]]], total: int) -> tuple[Extra, ...] | None:
    """Those of each kind as one; None if a kind cannot be."""
    kinds: dict[type[Extra], list[tuple[int, Extra]]] = {}
    for start, extras in parts:
        for extra in extras:
            kinds.setdefault(type(extra), []).append((start, extra))
    joined = [own[0][1].of_row_parts(own, total) for own in kinds.values()]
    known = tuple(extra for extra in joined if extra is not None)
    return known if len(known) == len(joined) else None
