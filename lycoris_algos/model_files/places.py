"""Where a layer's weight is stored in a model (a parameter, or parts of some), and how an adapter sees it.

A path does not always mean a whole parameter: fused weights hold several layers, OpenCLIP stores a projection
transposed, ComfyUI keeps some norms with their halves swapped. So a layer is at a ``Spot``, or at several
where the model stores it in pieces; ``Spots`` are in the order of the layer's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import Base, LayerAdapter
from ..models import Located
from ..structures import Structure
from ..text import Brief

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Spot(Brief):
    """A parameter of a model, or a part of it, as an adapter of that layer sees it.

    ``part`` is (dimension, start, length). ``transposed``: a matrix that is stored the other way round.
    ``swapped``: the halves of the first dimension are stored in the other order. ``function``: what a host
    makes its weight with out of the layer's, where that is none of these; the layer's own weight cannot be
    had then.
    """

    key: str
    part: tuple[int, int, int] | None = None
    transposed: bool = False
    swapped: bool = False
    function: Callable[[Any], Any] | None = None

    def shape(self, stored: Shape) -> Shape | None:
        """What the adapter sees of the shape ``stored`` of the parameter; None if that has no such part."""
        if self.part is not None:
            dim, start, length = self.part
            if dim >= len(stored) or start + length > stored[dim]:
                return None
            stored = (*stored[:dim], length, *stored[dim + 1 :])
        return stored[::-1] if self.transposed else stored


Spots = tuple[Spot, ...]


def family_spot(located: Located, prefix: str) -> Spot:
    """What a name of a model family stands for in a model whose keys begin with ``prefix``."""
    part = None if located.rows is None else (0, *located.rows)
    return Spot(prefix + located.key, part, swapped=located.swapped)


def seen(weight: Tensor, spot: Spot) -> Tensor:
    """``weight`` as the adapter of ``spot`` sees it; a view, unless it has to be turned round."""
    if spot.part is not None:
        weight = weight.narrow(*spot.part)
    if spot.swapped:
        return swap_halves(weight)
    return weight.T.contiguous() if spot.transposed else weight


def stored_rows(spot: Spot, count: int) -> tuple[tuple[int, int, int], ...]:
    """(row of the layer at ``spot``, row of the parameter, how many) for each run of ``count`` rows.

    Nothing where its rows are none of the parameter's.
    """
    dim, start, _ = (0, 0, count) if spot.part is None else spot.part
    if dim != 0 or spot.transposed or spot.function is not None:
        return ()
    half = count // 2
    return ((0, start + half, half), (half, start, half)) if spot.swapped else ((0, start, count),)


def put(weight: Tensor, spot: Spot, changed: Tensor) -> None:
    """Writes what the adapter of ``spot`` made of ``seen`` back into ``weight``."""
    part = weight if spot.part is None else weight.narrow(*spot.part)
    if spot.swapped:
        changed = swap_halves(changed)
    part.copy_(changed.T if spot.transposed else changed)


def swap_halves(weight: Tensor) -> Tensor:
    """``weight`` with the two halves of its rows exchanged."""
    first, second = weight.chunk(2, dim=0)
    return torch.cat((second, first))


@dataclass(frozen=True, eq=False)
class AdapterRows(Brief):
    """An adapter, or its rows (start, count, of how many) where a model stores its layer in pieces."""

    adapter: LayerAdapter
    rows: tuple[int, int, int] | None = None

    def fits(self, shape: Shape) -> None:
        """Raises ShapeMismatchError unless a (piece of a) weight of ``shape`` can take it."""
        self.adapter.fits(shape if self.rows is None else (self.rows[2], *shape[1:]))

    def structure(self, shape: Shape, dtype: torch.dtype = torch.float32, base: Base = None) -> Structure:
        """What it does to a (piece of a) weight of ``shape``; see ``LayerAdapter.structure`` and ``rows``."""
        if self.rows is None:
            return self.adapter.structure(shape, dtype, base)
        whole = self.adapter.structure((self.rows[2], *shape[1:]), dtype, base)
        return self.adapter.rows(whole, *self.rows)


def row_ranges(counts: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, count, of how many) of pieces of so many rows, one below the other."""
    return [(sum(counts[:number]), count, sum(counts)) for number, count in enumerate(counts)]


def pieces_of(adapter: LayerAdapter, counts: Sequence[int]) -> list[AdapterRows]:
    """``adapter`` cut into pieces of so many rows, or itself where there is one."""
    if len(counts) == 1:
        return [AdapterRows(adapter)]
    return [AdapterRows(adapter, rows) for rows in row_ranges(counts)]
