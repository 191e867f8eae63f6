"""Dense: a change that is held as it is, element for element (full differences, norms)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.dtypes import compute_dtype
from ..ops.rows import block_rows, row_blocks
from ..ops.scratch import scratch
from ._base import Structure


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Structure):
    """ΔW = matrix (o, c)."""

    kind: ClassVar[str] = "dense"

    matrix: Tensor
    #: What it computes in once it is cast, which its matrix is not: a cast copy would be as large as the
    #: weight.
    computing: torch.dtype | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def cast(self, device: torch.device, dtype: torch.dtype) -> Dense:
        return Dense(self.matrix.to(device, non_blocking=True), dtype)

    def ready(self, device: torch.device, dtype: torch.dtype) -> Dense:
        return self.cast(device, dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.computing or compute_dtype(self.matrix.dtype)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return self.matrix.to(self._dtype)

    def reach(self) -> float:
        count, columns = self.size
        blocks = row_blocks(count, block_rows(count, columns, self._dtype, self.matrix.device))
        return max((float(self.rows(*block).abs().max()) for block in blocks if columns), default=0.0)

    def rows(self, start: int, stop: int, weight: Tensor | None = None) -> Tensor:
        return self.matrix[start:stop].to(self._dtype, copy=True)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        count, columns = rows.shape
        if self.matrix.dtype == rows.dtype:
            rows.add_(self.matrix[start : start + count], alpha=multiplier)
            return
        step = block_rows(count, columns, rows.dtype, rows.device)
        with scratch((step, columns), rows.dtype, rows.device) as buffer:
            for begin, end in row_blocks(count, step):
                own = buffer[: end - begin].copy_(self.matrix[start + begin : start + end])
                rows[begin:end].add_(own, alpha=multiplier)
