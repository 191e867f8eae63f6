"""One layer's adapter in the form that changes weights: on one device, in the compute dtype.

``update_`` decides how a weight is gone through:

- A weight that is already in the compute dtype, and whose strides let it be seen as a matrix of rows, is
  updated in place and whole, with no temporary of its size.
- Any other (bf16, fp16, fp8, channels-last) goes through an fp32 buffer, a block of rows at a time: every
  entry of a stack is added to the block while it is in the cache, and it is rounded once on the way back.
- Where the change of a row depends on far-away rows (a norm over a whole column, a butterfly of all rows),
  the block is the whole weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.rows import block_rows, matrix_view, row_blocks, threads
from ..ops.scratch import scratch
from ._base import Component
from ._modifiers import ReadyMagnitude


@dataclass(frozen=True, eq=False)
class ReadyLayer:
    """``ready`` components in order of application, and DoRA's magnitude, if the layer has one."""

    components: tuple[Component, ...]
    magnitude: ReadyMagnitude | None = None
    #: Which row of the layer the first row of the weight is, where a model stores a layer in pieces.
    first_row: int = 0

    @property
    def row_unit(self) -> int:
        """Rows depend on no rows outside their own group of this many; 0: on all of them."""
        if self.magnitude is not None and self.magnitude.over_rows:
            return 0
        return self._component_unit

    def add_rows_(self, rows: Tensor, start: int, multiplier: float) -> None:
        """rows += multiplier·ΔW(rows), in place; ``rows`` are those from ``start`` on of the weight."""
        start += self.first_row
        if self.magnitude is None:
            self._add(rows, start, multiplier, rows)
        elif self.magnitude.over_rows:
            self._decompose_columns_(rows, start, multiplier, self.magnitude)
        else:
            self._decompose_rows_(rows, start, multiplier, self.magnitude)

    def _add(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        if base is rows and any(component.needs_weight for component in self.components[1:]):
            base = rows.clone()  # every component sees W, not what the one before made of it
        for component in self.components:
            component.add_rows_(rows, start, multiplier, base)

    def _decompose_rows_(
        self, rows: Tensor, start: int, multiplier: float, magnitude: ReadyMagnitude
    ) -> None:
        blocks = self._blocks(rows)
        with scratch((_longest(blocks), rows.shape[1]), rows.dtype, rows.device) as buffer:
            for first, last in blocks:
                own = rows[first:last]
                combined = self._combined(own, start + first, buffer[: last - first])
                factors = magnitude.row_factors(combined, slice(start + first, start + last))
                _blend_(own, combined, factors, multiplier)

    def _decompose_columns_(
        self, rows: Tensor, start: int, multiplier: float, magnitude: ReadyMagnitude
    ) -> None:
        # Two passes, so that V is never held whole: its norms need all rows, its values only one block.
        blocks = self._blocks(rows)
        longest, columns = _longest(blocks), rows.shape[1]
        squares, ones = rows.new_zeros(columns), rows.new_ones(longest)
        with scratch((2, longest, columns), rows.dtype, rows.device) as (buffer, squared):
            for first, last in blocks:
                count = last - first
                combined = self._combined(rows[first:last], start + first, buffer[:count])
                own = torch.mul(combined, combined, out=squared[:count])
                squares.addmv_(own.T, ones[:count])  # faster than a sum over rows
            factors = magnitude.column_factors(squares)
            for first, last in blocks:
                own = rows[first:last]
                if len(blocks) > 1:
                    combined = self._combined(own, start + first, buffer[: last - first])
                _blend_(own, combined, factors, multiplier)

    def _combined(self, rows: Tensor, start: int, into: Tensor) -> Tensor:
        """V of ``rows``, which are those from ``start`` on of the layer, in ``into``."""
        into.copy_(rows)
        self._add(into, start, 1.0, rows)
        return into

    def _blocks(self, rows: Tensor) -> list[tuple[int, int]]:
        """(first, last) of the blocks in which V is made."""
        count, columns = rows.shape
        return _blocks(count, columns, rows.dtype, rows.device, self._component_unit)

    @property
    def _component_unit(self) -> int:
        return _common_unit(component.row_unit for component in self.components)


def update_(weight: Tensor, steps: Sequence[tuple[ReadyLayer, float]], dtype: torch.dtype) -> None:
    """Applies (layer, multiplier) to ``weight`` in place, in order, computing in ``dtype``."""
    matrix = matrix_view(weight) if weight.dtype == dtype else None
    if matrix is not None:
        for layer, multiplier in steps:
            layer.add_rows_(matrix, 0, multiplier)
        return
    weight = weight if weight.dim() else weight.view(1)
    count, columns = weight.shape[0], weight[0].numel()
    unit = _common_unit(layer.row_unit for layer, _ in steps)
    blocks = _blocks(count, columns, dtype, weight.device, unit)
    with scratch((_longest(blocks), *weight.shape[1:]), dtype, weight.device) as buffer:
        for start, stop in blocks:
            block = buffer[: stop - start]
            block.copy_(weight[start:stop])
            rows = block.view(stop - start, columns)
            for layer, multiplier in steps:
                layer.add_rows_(rows, start, multiplier)
            weight[start:stop].copy_(block)


def _common_unit(units: Iterable[int]) -> int:
    """Rows depend on no rows outside groups of so many if each of them does; 0 if one depends on all."""
    found = tuple(units)
    return 0 if 0 in found else math.lcm(*found)


def _blocks(
    count: int, columns: int, dtype: torch.dtype, device: torch.device, unit: int
) -> list[tuple[int, int]]:
    """(first, last) of blocks of ``count`` rows in whole ``unit``s, alike for all threads; 0: all at once."""
    shared = math.lcm(threads(device), unit) if unit else count
    return list(row_blocks(count, block_rows(count, columns, dtype, device, shared), shared))


def _longest(blocks: Sequence[tuple[int, int]]) -> int:
    return max(last - first for first, last in blocks)


def _blend_(rows: Tensor, combined: Tensor, factors: Tensor, multiplier: float) -> None:
    """rows += multiplier·(combined·factors − rows); uses ``combined`` up."""
    if multiplier == 1.0:  # one pass less, and the same to the last bit
        torch.mul(combined, factors, out=rows)
    else:
        rows.lerp_(combined.mul_(factors), multiplier)
