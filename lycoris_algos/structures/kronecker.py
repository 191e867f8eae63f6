"""Kronecker: the product of two small matrices, element of one times all of the other (LoKr)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.dtypes import to_compute
from ..ops.kronecker import add_kron_rows_, kron, kron_factors
from ._base import Factors, Structure
from .dense import Dense
from .low_rank import LowRank
from .operation import LayerOperation

# From this many elements of the first factor on, a whole second one is small beside the weight (its share is
# 1/numel).
_WHOLE_FROM = 8


@dataclass(frozen=True, eq=False, repr=False)
class Kronecker(Structure):
    """ΔW = scale · first (o1, i1) ⊗ second (o2, c2), o = o1·o2, c = i1·c2; either is whole or low-rank."""

    kind: ClassVar[str] = "kronecker"

    first: Dense | LowRank
    second: Dense | LowRank
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        (o1, i1), (o2, c2) = self.first.size, self.second.size
        return o1 * o2, i1 * c2

    @property
    def exact_rank(self) -> int:
        return _rank(self.first) * _rank(self.second)

    def ready(self, device: torch.device, dtype: torch.dtype) -> Kronecker:
        """Both whole, but a low-rank second beside a first so small that the second is nearly the weight."""
        first, second = (_cast(factor, device, dtype) for factor in (self.first, self.second))
        rows, columns = first.size
        if rows * columns >= _WHOLE_FROM or not _is_thin(second):
            second = _whole(second)
        return Kronecker(_whole(first), second, self.scale)

    def cast(self, device: torch.device, dtype: torch.dtype) -> Kronecker:
        first, second = (_cast(factor, device, dtype) for factor in (self.first, self.second))
        return Kronecker(first, second, self.scale)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return kron(self.first.delta() * self.scale, self.second.delta())

    def factors(self, weight: Tensor | None = None) -> Factors:
        up, down = kron_factors(_as_thin(self.first), _as_thin(self.second))
        return up if self.scale == 1.0 else up * self.scale, down

    def multiplies_with(self, other: Kronecker) -> bool:
        """Whether (A₁ ⊗ A₂)ᵀ·(B₁ ⊗ B₂) = A₁ᵀ·B₁ ⊗ A₂ᵀ·B₂: the factors of both are of the same sizes."""
        return self.first.size == other.first.size and self.second.size == other.second.size

    def reach(self) -> float:
        return abs(self.scale) * self.first.reach() * self.second.reach()

    def norm(self, weight: Tensor | None = None) -> float:
        return abs(self.scale) * self.first.norm() * self.second.norm()

    def inner_product(self, other: Structure, weight: Tensor | None = None) -> float:
        if isinstance(other, Kronecker) and self.multiplies_with(other):
            firsts = self.first.inner_product(other.first)
            return self.scale * other.scale * firsts * self.second.inner_product(other.second)
        return super().inner_product(other, weight)

    def spectrum(self, weight: Tensor | None = None) -> Tensor:
        first = self.first.spectrum().double() * abs(self.scale)
        return torch.outer(first, self.second.spectrum().double()).flatten().sort(descending=True).values

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        multiplier *= self.scale
        elements = self.first.delta()
        if isinstance(self.second, Dense):
            add_kron_rows_(rows, start, elements, self.second.delta(), multiplier)
            return
        # One product per element of a tiny first factor, each over the rows and columns that it scales.
        up, down = self.second.factors()
        tall, wide = self.second.size
        end = start + rows.shape[0]
        for block in range(start // tall, (end + tall - 1) // tall):
            first, last = max(start, block * tall), min(end, (block + 1) * tall)
            own = rows[first - start : last - start]
            left = up[first - block * tall : last - block * tall]
            for column in range(elements.shape[1]):
                part = own[:, column * wide : (column + 1) * wide]
                part.addmm_(left, down * elements[block, column], alpha=multiplier)

    @property
    def work(self) -> int:
        rows, columns = self.size
        return columns * self.second.size[0] + rows * self.first.size[1]

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        """(first ⊗ second)·x = second·X·firstᵀ, x seen as a matrix X: each factor on its own axis."""
        if operation.grouped:
            return super().forward(x, operation)
        _, i1 = self.first.size
        axis = operation.channel_axis
        # The first half of the channels becomes a part of the batch, which the layer's own operation leaves
        # alone.
        split = x.reshape(*x.shape[:axis], i1, -1, *x.shape[x.dim() + axis + 1 :])
        halves = split.movedim(axis - 1, 0)
        passed = operation.through(halves.flatten(0, 1), self.second.delta())
        together = passed.reshape(i1, -1, *passed.shape[1:])
        mixed: Tensor = torch.tensordot(self.first.delta() * self.scale, together, dims=1)
        return mixed.movedim(0, axis - 1).flatten(axis - 1, axis)


def _is_thin(factor: Dense | LowRank) -> bool:
    """Whether it is known to have fewer ranks than its size allows."""
    return isinstance(factor, LowRank) and factor.exact_rank < min(factor.size)


def _as_thin(factor: Dense | LowRank) -> Factors | Tensor:
    return factor.factors() if isinstance(factor, LowRank) and _is_thin(factor) else factor.delta()


def _rank(factor: Dense | LowRank) -> int:
    return factor.exact_rank if isinstance(factor, LowRank) and _is_thin(factor) else min(factor.size)


def _cast(factor: Dense | LowRank, device: torch.device, dtype: torch.dtype) -> Dense | LowRank:
    if isinstance(factor, Dense):  # small, so it may be cast before it is needed
        return Dense(to_compute(factor.matrix, device, dtype), dtype)
    return LowRank(to_compute(factor.up, device, dtype), to_compute(factor.down, device, dtype), factor.scale)


def _whole(factor: Dense | LowRank) -> Dense:
    matrix = factor.delta()
    return Dense(matrix, matrix.dtype)
