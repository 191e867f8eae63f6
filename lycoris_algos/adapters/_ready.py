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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.rows import matrix_view, row_blocks, rows_per_block, threads
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
        units = [component.row_unit for component in self.components]
        return 0 if 0 in units else math.lcm(*units)

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
        for first, last, combined in self._combined(rows, start):
            own = slice(start + first, start + last)
            rows[first:last].lerp_(combined.mul_(magnitude.row_factors(combined, own)), multiplier)

    def _decompose_columns_(
        self, rows: Tensor, start: int, multiplier: float, magnitude: ReadyMagnitude
    ) -> None:
        # Two passes, so that V is never held whole: its norms need all rows, its values only one block.
        squares = rows.new_zeros(rows.shape[1])
        for _, _, combined in self._combined(rows, start):
            squares += combined.square_().sum(0)
        factors = magnitude.column_factors(squares)
        for first, last, combined in self._combined(rows, start):
            rows[first:last].lerp_(combined.mul_(factors), multiplier)

    def _combined(self, rows: Tensor, start: int) -> Iterator[tuple[int, int, Tensor]]:
        """(first, last, V) of consecutive blocks of ``rows``; V lies in a buffer that is used again."""
        count, columns = rows.shape
        unit = self._component_unit() or count
        step = _block_rows(count, columns, rows.dtype, rows.device, unit)
        with scratch((step, columns), rows.dtype, rows.device) as buffer:
            for first, last in row_blocks(count, step, unit):
                block = buffer[: last - first].copy_(rows[first:last])
                self._add(block, start + first, 1.0, rows[first:last])
                yield first, last, block

    def _component_unit(self) -> int:
        units = [component.row_unit for component in self.components]
        return 0 if 0 in units else math.lcm(*units)


def update_(weight: Tensor, steps: Sequence[tuple[ReadyLayer, float]], dtype: torch.dtype) -> None:
    """Applies (layer, multiplier) to ``weight`` in place, in order, computing in ``dtype``."""
    matrix = matrix_view(weight) if weight.dtype == dtype else None
    if matrix is not None:
        for layer, multiplier in steps:
            layer.add_rows_(matrix, 0, multiplier)
        return
    weight = weight if weight.dim() else weight.view(1)
    count, columns = weight.shape[0], weight[0].numel()
    units = [layer.row_unit for layer, _ in steps]
    unit = count if 0 in units else math.lcm(threads(weight.device), *units)
    step = _block_rows(count, columns, dtype, weight.device, unit)
    with scratch((step, *weight.shape[1:]), dtype, weight.device) as buffer:
        for start, stop in row_blocks(count, step, unit):
            block = buffer[: stop - start]
            block.copy_(weight[start:stop])
            rows = block.view(stop - start, columns)
            for layer, multiplier in steps:
                layer.add_rows_(rows, start, multiplier)
            weight[start:stop].copy_(block)


def _block_rows(count: int, columns: int, dtype: torch.dtype, device: torch.device, unit: int) -> int:
    """Rows of one block: as many as fit the cache, in whole ``unit``s."""
    step = rows_per_block(columns, dtype, device)
    return min(count, max(unit, step // unit * unit))
