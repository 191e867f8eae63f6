"""Rotation by blocks: the output or the input channels turned in groups of b (OFT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.rows import block_rows, row_blocks
from ..ops.scratch import scratch
from ._base import Structure
from .operation import LayerOperation
from .scaling import given


@dataclass(frozen=True, eq=False, repr=False)
class RowRotation(Structure):
    """ΔW[n·b + m, :] = Σ_k change[n, m, k]·W[n·b + k, :], ``change`` (n, b, b) being R − I of each block."""

    kind: ClassVar[str] = "row rotation"
    needs_weight = True

    change: Tensor

    @property
    def size(self) -> tuple[int, None]:
        return self.change.shape[0] * self.change.shape[1], None

    @property
    def row_unit(self) -> int:
        return self.change.shape[1]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        weight = given(weight)
        blocks = weight.reshape(*self.change.shape[:2], -1)
        return torch.bmm(self.change, blocks).reshape(weight.shape)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        size, columns = self.change.shape[1], rows.shape[1]
        change = self.change[start // size :]
        count = rows.shape[0] // size
        step = block_rows(count, columns * size, rows.dtype, rows.device)
        with scratch((step, size, columns), rows.dtype, rows.device) as buffer:
            for first, last in row_blocks(count, step):
                own = slice(first * size, last * size)
                blocks = base[own].view(last - first, size, columns)
                turned = torch.bmm(change[first:last], blocks, out=buffer[: last - first])
                rows[own].view(turned.shape).add_(turned, alpha=multiplier)

    @property
    def work(self) -> int:
        return self.change.numel()

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped:  # outputs of other groups see other inputs
            return super().forward(x, operation)
        blocks = operation.split(operation(x), *self.change.shape[:2])
        return operation.joined(torch.einsum("...nk,nmk->...nm", blocks, self.change), 2)


@dataclass(frozen=True, eq=False, repr=False)
class ColumnRotation(Structure):
    """ΔW[:, n·b + m] = Σ_k W[:, n·b + k]·change[n, k, m]; ``change`` (blocks or 1, b, b) is R − I."""

    kind: ClassVar[str] = "column rotation"
    needs_weight = True

    change: Tensor
    blocks: int

    @property
    def size(self) -> tuple[None, int]:
        return None, self.blocks * self.change.shape[1]

    @property
    def _all(self) -> Tensor:
        return self.change.expand(self.blocks, -1, -1)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        weight = given(weight)
        blocks = weight.reshape(weight.shape[0], self.blocks, -1)
        return torch.einsum("onk,nkc->onc", blocks, self._all).reshape(weight.shape)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        blocks, size, change = self.blocks, self.change.shape[1], self._all
        count, columns = rows.shape
        step = block_rows(count, columns, rows.dtype, rows.device)
        with scratch((blocks * step * size,), rows.dtype, rows.device) as buffer:
            for first, last in row_blocks(count, step):
                own = base[first:last].view(last - first, blocks, size).transpose(0, 1)
                into = buffer[: own.numel()].view(own.shape)
                turned = torch.bmm(own, change, out=into).transpose(0, 1)
                rows[first:last].view(turned.shape).add_(turned, alpha=multiplier)

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if not operation.pointwise:
            return super().forward(x, operation)
        blocks = operation.split(x, self.blocks, self.change.shape[1])
        return operation(operation.joined(torch.einsum("...nm,nkm->...nk", blocks, self._all), 2))
