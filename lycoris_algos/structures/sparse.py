"""Sparse: a few elements of a weight, each by its row and column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ._base import Structure
from .scaling import given


@dataclass(frozen=True, eq=False, repr=False)
class Sparse(Structure):
    """ΔW[row, column] += value, less W[row, column] where ``replaces``: the element then becomes the value.

    ``positions`` (2, n) int64 are rows and columns, ``values`` (n,); all inside of (row_count, column_count).
    """

    kind: ClassVar[str] = "sparse"

    positions: Tensor
    values: Tensor
    row_count: int
    column_count: int
    replaces: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.row_count, self.column_count

    @property
    def needs_weight(self) -> bool:
        return self.replaces

    def reach(self) -> float | None:
        return None if self.replaces else float(self.values.abs().sum())  # one place may be named twice

    def delta(self, weight: Tensor | None = None) -> Tensor:
        row, column = self.positions
        values = self.values
        if self.replaces:
            values = values - given(weight)[row, column]
        return values.new_zeros(self.size).index_put((row, column), values, accumulate=True)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Values of other rows are added as zeros: sorting them out would wait for the GPU.
        row, column = self.positions
        own = (row >= start) & (row < start + rows.shape[0])
        inside = torch.clamp(row - start, 0, rows.shape[0] - 1)
        values = self.values - base[inside, column] if self.replaces else self.values
        values = torch.where(own, values * multiplier, 0)
        rows.index_put_((inside, column), values, accumulate=True)
