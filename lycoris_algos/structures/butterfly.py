"""Butterfly: channels turned in blocks over and over, regrouped between stages, then rescaled (BOFT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.butterfly import merge_stages, turn
from ..ops.rows import row_blocks, rows_per_block
from ._base import Structure
from .operation import LayerOperation
from .scaling import given

# Products with fewer columns are slow, even where more do not fit the cache.
_COLUMNS = 64


@dataclass(frozen=True, eq=False, repr=False)
class RowButterfly(Structure):
    """ΔW = s ⊙ (R·W) − W, R a butterfly of ``stages`` stages over all rows, ``span`` in each rotation.

    ``rescale`` is s (o,), or None for ones. The order of rows within a block is that of ops/butterfly.py.
    """

    kind: ClassVar[str] = "row butterfly"
    needs_weight = True
    row_unit = 0

    rotations: Tensor
    stages: int
    span: int
    rescale: Tensor | None = None

    @classmethod
    def of(cls, rotations: Tensor, rescale: Tensor | None, dtype: torch.dtype) -> RowButterfly:
        """From a rotation (T, n, b, b) for each stage: in as few products as are fast, in ``dtype``."""
        merged, span = merge_stages(rotations)
        return cls(merged.to(dtype), len(rotations), span, rescale)

    @property
    def size(self) -> tuple[int, None]:
        return self.rotations.shape[1] * self.rotations.shape[2], None

    def delta(self, weight: Tensor | None = None) -> Tensor:
        weight = given(weight)
        return self._turned(weight) - weight

    def _turned(self, rows: Tensor) -> Tensor:
        """W' for all rows of any columns, a new tensor."""
        rows = turn(rows, self.rotations, self.stages, self.span)
        return rows if self.rescale is None else rows * self.rescale[:, None]

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Columns are independent, so it goes by blocks of columns: each stays in the cache for all stages.
        count, columns = rows.shape
        step = max(_COLUMNS, rows_per_block(count, rows.dtype, rows.device))
        for first, last in row_blocks(columns, step):
            own = base[:, first:last].contiguous()
            rows[:, first:last].add_(self._turned(own).sub_(own), alpha=multiplier)

    @property
    def work(self) -> int:
        return self.rotations.numel()

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped:  # outputs of other groups see other inputs
            return super().forward(x, operation)
        y = operation(x)
        channels = y.movedim(operation.channel_axis, 0)
        turned = self._turned(channels.flatten(1)).reshape(channels.shape)
        return turned.movedim(0, operation.channel_axis) - y


@dataclass(frozen=True, eq=False, repr=False)
class ColumnButterfly(Structure):
    """ΔW = s ⊙ (W·Rᵀ) − W, R as in ``RowButterfly`` but over the columns; ``rescale`` is s (o,)."""

    kind: ClassVar[str] = "column butterfly"
    needs_weight = True

    rotations: Tensor
    stages: int
    span: int
    rescale: Tensor

    @classmethod
    def of(cls, rotations: Tensor, rescale: Tensor, dtype: torch.dtype) -> ColumnButterfly:
        """From a rotation (T, n, b, b) for each stage: in as few products as are fast, in ``dtype``."""
        merged, span = merge_stages(rotations)
        return cls(merged.to(dtype), len(rotations), span, rescale)

    @property
    def size(self) -> tuple[int, int]:
        return self.rescale.numel(), self.rotations.shape[1] * self.rotations.shape[2]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        weight = given(weight)
        return self._turned(weight, 0) - weight

    def _turned(self, rows: Tensor, start: int) -> Tensor:
        """W' for ``rows`` of whole inputs, the ones from ``start`` on."""
        turned = turn(rows.T, self.rotations, self.stages, self.span).T
        return turned * self.rescale[start : start + rows.shape[0], None]

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        count, columns = rows.shape
        for first, last in row_blocks(count, rows_per_block(columns, rows.dtype, rows.device)):
            own = base[first:last]
            rows[first:last].add_(self._turned(own, start + first).sub_(own), alpha=multiplier)

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if not operation.pointwise:
            return super().forward(x, operation)
        # s ⊙ (W·Rᵀ)·x = s ⊙ W·(Rᵀ·x): the stages in reverse order, each transposed.
        channels = x.movedim(operation.channel_axis, 0)
        turned = turn(channels.flatten(1), self.rotations, self.stages, self.span, transposed=True)
        inputs = turned.reshape(channels.shape).movedim(0, operation.channel_axis)
        return operation.scaled(operation(inputs), self.rescale) - operation(x)
