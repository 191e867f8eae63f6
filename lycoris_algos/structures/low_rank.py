"""Low rank: the product of two thin matrices (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.products import addmm_rows_
from ._base import Factors, Structure
from .operation import LayerOperation


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Structure):
    """ΔW = scale · up (o, r)·down (r, c)."""

    kind: ClassVar[str] = "low rank"

    up: Tensor
    down: Tensor
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def exact_rank(self) -> int:
        return self.down.shape[0]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return self._scaled_up @ self.down

    def factors(self, weight: Tensor | None = None) -> Factors:
        return self._scaled_up, self.down

    def reach(self) -> float:
        up, down = (torch.linalg.vector_norm(*own) for own in ((self.up, 2, 1), (self.down, 2, 0)))
        return abs(self.scale) * float(up.max() * down.max())

    @property
    def _scaled_up(self) -> Tensor:
        return self.up if self.scale == 1.0 else self.up * self.scale

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        addmm_rows_(rows, self.up[start : start + rows.shape[0]], self.down, multiplier * self.scale)

    @property
    def work(self) -> int:
        return self.exact_rank * sum(self.size)

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped:
            return super().forward(x, operation)
        return operation.mixed(operation.through(x, self.down), self._scaled_up)
