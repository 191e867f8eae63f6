"""Scaling: every output or input channel of W times a number of its own ((IA)³)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ._base import Structure
from .operation import LayerOperation


@dataclass(frozen=True, eq=False, repr=False)
class RowScaling(Structure):
    """ΔW[o, c] = vector[o]·W[o, c]."""

    kind: ClassVar[str] = "row scaling"
    needs_weight = True

    vector: Tensor

    @property
    def size(self) -> tuple[int, None]:
        return self.vector.numel(), None

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return given(weight) * self.vector[:, None]

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        rows.addcmul_(base, self.vector[start : start + rows.shape[0], None], value=multiplier)

    @property
    def work(self) -> int:
        return self.vector.numel()

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        return operation.scaled(operation(x), self.vector)


@dataclass(frozen=True, eq=False, repr=False)
class ColumnScaling(Structure):
    """ΔW[o, c] = vector[i]·W[o, c], c = i·positions + k: kernel positions of a channel share its number."""

    kind: ClassVar[str] = "column scaling"
    needs_weight = True

    vector: Tensor
    positions: int

    @property
    def size(self) -> tuple[None, int]:
        return None, self.vector.numel() * self.positions

    @property
    def _repeated(self) -> Tensor:
        return self.vector if self.positions == 1 else self.vector.repeat_interleave(self.positions)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return given(weight) * self._repeated

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        rows.addcmul_(base, self._repeated, value=multiplier)

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped:
            return super().forward(x, operation)
        return operation(operation.scaled(x, self.vector))


def given(weight: Tensor | None) -> Tensor:
    """``weight``; TypeError where a change that depends on it was asked for without."""
    if weight is None:
        raise TypeError("this change depends on the weight: give it")
    return weight
