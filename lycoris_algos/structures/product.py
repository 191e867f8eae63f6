"""Products with W: changes through which the weight itself passes (GLoRA, GLoKr, Householder reflections)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.products import addmm_rows_
from ..ops.rows import row_blocks, rows_per_block
from ._base import Factors, Structure
from .operation import LayerOperation
from .scaling import given


@dataclass(frozen=True, eq=False, repr=False)
class Product(Structure):
    """ΔW = scale · (up (o, r)·down (r, c) + (W·left (i, q))·right (q, i)), the first term being optional.

    Where c = i·∏k, W·left·right contracts the i input channels at each of the ``positions`` of the kernel.
    Both terms are one product, so that the weight is gone through once.
    """

    kind: ClassVar[str] = "product"
    needs_weight = True

    left: Tensor
    right: Tensor
    positions: int = 1
    scale: float = 1.0
    up: Tensor | None = None
    down: Tensor | None = None

    @property
    def size(self) -> tuple[int | None, int]:
        return (None if self.up is None else self.up.shape[0]), self.left.shape[0] * self.positions

    @property
    def exact_rank(self) -> int:
        return self.left.shape[1] * self.positions + (0 if self.down is None else self.down.shape[0])

    def _channels(self, weight: Tensor) -> Tensor:
        return weight.reshape(weight.shape[0], self.left.shape[0], -1)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        weight = given(weight)
        passed = torch.einsum("oik,ir,rj->ojk", self._channels(weight), self.left, self.right)
        change = passed.reshape(weight.shape)
        if self.up is not None and self.down is not None:
            change = self.up @ self.down + change
        return change * self.scale

    def factors(self, weight: Tensor | None = None) -> Factors | None:
        if weight is None:
            return None
        # W·left at each kernel position is a rank of its own: (W·left)·right = up·(right ⊗ I).
        up = torch.einsum("oik,ir->ork", self._channels(weight), self.left).reshape(weight.shape[0], -1)
        same = torch.eye(self.positions, dtype=self.right.dtype, device=self.right.device)
        down = torch.kron(self.right.contiguous(), same)
        if self.up is not None and self.down is not None:
            up, down = torch.cat((self.up, up), dim=1), torch.cat((self.down, down))
        return up * self.scale, down

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        value = multiplier * self.scale
        own = None if self.up is None else self.up[start : start + rows.shape[0]]
        if self.positions == 1:
            left, right = base @ self.left, self.right
            if own is not None and self.down is not None:
                left, right = torch.cat((own, left), dim=1), torch.cat((self.down, right))
            addmm_rows_(rows, left, right, value)
            return
        count, columns = rows.shape
        for first, last in row_blocks(count, rows_per_block(columns, rows.dtype, rows.device)):
            channels = base[first:last].view(last - first, self.left.shape[0], -1)
            passed = torch.matmul(self.right.T, torch.matmul(self.left.T, channels))
            if own is not None and self.down is not None:
                addmm_rows_(rows[first:last], own[first:last], self.down, value)
            rows[first:last].view(channels.shape).add_(passed, alpha=value)

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped or (self.positions == 1 and not operation.pointwise):
            return super().forward(x, operation)
        y = operation(operation.mixed(operation.mixed(x, self.right), self.left))
        if self.up is not None and self.down is not None:
            y = y + operation.mixed(operation.through(x, self.down), self.up)
        return y * self.scale


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerProduct(Structure):
    """ΔW = W·(first (p, p) ⊗ second (q, q)), i = p·q, at each of the ``positions`` of the kernel.

    The square matrix is never formed: its factors are contracted with the two halves of the input channels.
    """

    kind: ClassVar[str] = "kronecker product"
    needs_weight = True

    first: Tensor
    second: Tensor
    positions: int

    @property
    def size(self) -> tuple[None, int]:
        return None, self.first.shape[0] * self.second.shape[0] * self.positions

    def delta(self, weight: Tensor | None = None) -> Tensor:
        rows = given(weight)
        halves = rows.reshape(rows.shape[0], self.first.shape[0], self.second.shape[0], -1)
        return torch.einsum("npqk,pa,qb->nabk", halves, self.first, self.second).reshape(rows.shape)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        count, columns = rows.shape
        for first, last in row_blocks(count, rows_per_block(columns, rows.dtype, rows.device)):
            rows[first:last].add_(self.delta(base[first:last]), alpha=multiplier)

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped:
            return super().forward(x, operation)
        halves = operation.split(x, self.first.shape[0], self.second.shape[0])
        mixed = torch.einsum("...ab,pa,qb->...pq", halves, self.first, self.second)
        return operation(operation.joined(mixed, 2))


@dataclass(frozen=True, eq=False, repr=False)
class BlockProduct(Structure):
    """ΔW[I, J] = W[I, J]·blocks[I] for the blocks of b × b that W is cut into; ``blocks`` (o/b, b, b)."""

    kind: ClassVar[str] = "block product"
    needs_weight = True

    blocks: Tensor

    @property
    def size(self) -> tuple[int, None]:
        return self.blocks.shape[0] * self.blocks.shape[1], None

    @property
    def row_unit(self) -> int:
        return self.blocks.shape[1]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return self._passed(given(weight), self.blocks)

    def _passed(self, rows: Tensor, blocks: Tensor) -> Tensor:
        size = blocks.shape[1]
        cut = rows.reshape(len(blocks), size * (rows.shape[1] // size), size)
        return torch.bmm(cut, blocks).reshape(rows.shape)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        size = self.blocks.shape[1]
        first = start // size
        count = rows.shape[0] // size
        step = max(1, rows_per_block(rows.shape[1], rows.dtype, rows.device) // size)
        for begin, end in row_blocks(count, step):
            own = slice(begin * size, end * size)
            rows[own].add_(
                self._passed(base[own], self.blocks[first + begin : first + end]), alpha=multiplier
            )
