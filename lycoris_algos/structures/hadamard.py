"""Hadamard: the elementwise product of two low-rank matrices (LoHa)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.hadamard import khatri_rao
from ..ops.products import FEW, mm_rows
from ..ops.rows import block_rows, row_blocks, threads
from ..ops.scratch import scratch
from ._base import Factors, Structure, pays
from .low_rank import LowRank
from .operation import LayerOperation

# Up to this rank, one matrix product straight into the weight is faster than two products and a pass over
# them (measured for ranks of 4, 6 and 8 with one and two threads; see docs/benchmarks.md).
_AS_LOW_RANK = 36


@dataclass(frozen=True, eq=False, repr=False)
class Hadamard(Structure):
    """ΔW = scale · (a1 (o, r1)·b1 (r1, c)) ⊙ (a2 (o, r2)·b2 (r2, c)); of rank r1·r2 at most."""

    kind: ClassVar[str] = "hadamard"

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        return self.a1.shape[0], self.b1.shape[1]

    @property
    def exact_rank(self) -> int:
        return self.b1.shape[0] * self.b2.shape[0]

    def ready(self, device: torch.device, dtype: torch.dtype) -> Structure:
        """The low-rank product that it is, where that is the faster one to add."""
        cast = self.cast(device, dtype)
        assert isinstance(cast, Hadamard)
        if self.exact_rank <= _AS_LOW_RANK and pays(self.exact_rank, *self.size):
            return LowRank(*khatri_rao(cast.a1, cast.b1, cast.a2, cast.b2), self.scale)
        return cast

    def reach(self) -> float:
        return LowRank(self.a1, self.b1, self.scale).reach() * LowRank(self.a2, self.b2).reach()

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return ((self.a1 * self.scale) @ self.b1) * (self.a2 @ self.b2)

    def factors(self, weight: Tensor | None = None) -> Factors:
        up, down = khatri_rao(self.a1, self.b1, self.a2, self.b2)
        return up * self.scale, down

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Both products are as large as the weight, so they are made a block at a time in two buffers.
        count, columns = rows.shape
        value = multiplier * self.scale
        if rows.numel() <= FEW:
            own = slice(start, start + count)
            rows.addcmul_(self.a1[own] @ self.b1, self.a2[own] @ self.b2, value=value)
            return
        unit = threads(rows.device)
        step = block_rows(count, columns, rows.dtype, rows.device, unit)
        with scratch((2, step, columns), rows.dtype, rows.device) as (first, second):
            for begin, end in row_blocks(count, step, unit):
                own = slice(start + begin, start + end)
                w1 = mm_rows(self.a1[own], self.b1, first[: end - begin])
                w2 = mm_rows(self.a2[own], self.b2, second[: end - begin])
                rows[begin:end].addcmul_(w1, w2, value=value)

    @property
    def work(self) -> int | None:
        low_rank = self.exact_rank <= _AS_LOW_RANK and pays(self.exact_rank, *self.size)
        return self.exact_rank * sum(self.size) if low_rank else None

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if self.work is not None:
            return LowRank(*self.factors()).forward(x, operation)
        return super().forward(x, operation)
