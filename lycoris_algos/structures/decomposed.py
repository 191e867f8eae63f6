"""DoRA's norm around a structure: the changed weight is given trained lengths, by rows or by input channels.

V = W + ΔW(W)          ΔW' = V · d / ‖V‖ − W            (arXiv 2402.09353)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.scratch import scratch
from ._base import Structure
from .blocks import blocks_of, longest
from .operation import LayerOperation
from .scaling import given


@dataclass(frozen=True, eq=False, repr=False)
class Decomposed(Structure):
    """What both axes share. ``norms`` are ‖V‖ where they were measured before; only forward uses them."""

    inner: Structure
    magnitude: Tensor
    norms: Tensor | None = None

    @property
    def needs_weight(self) -> bool:
        return True

    def with_norms(self, weight: Tensor) -> Decomposed:
        """The same with ‖V‖ of ``weight`` (o, c) kept, so that ``forward`` need not form V."""
        return replace(self, norms=self.measured(weight + self.inner.delta(weight)))

    @abstractmethod
    def measured(self, combined: Tensor) -> Tensor:
        """‖V‖ of every channel of d's axis, from V (o, c)."""

    def _known_norms(self, operation: LayerOperation) -> Tensor:
        if self.norms is not None:
            return self.norms
        matrix = operation.matrix
        return self.measured(matrix + self.inner.delta(matrix if self.inner.needs_weight else None))

    def _combine(self, rows: Tensor, start: int, into: Tensor) -> Tensor:
        """V of ``rows`` of W, those from ``start`` on, in ``into``."""
        into.copy_(rows)
        self.inner.add_rows_(into, start, 1.0, rows)
        return into


@dataclass(frozen=True, eq=False, repr=False)
class RowDecomposed(Decomposed):
    """d (o,) and ‖V‖ of each output, over everything else."""

    kind: ClassVar[str] = "row decomposed"

    @property
    def size(self) -> tuple[int, int | None]:
        return self.magnitude.numel(), self.inner.size[1]

    @property
    def row_unit(self) -> int:
        return self.inner.row_unit

    def measured(self, combined: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(combined, dim=1)
        return norms

    def _factors(self, norms: Tensor, own: slice) -> Tensor:
        return self.magnitude[own] / _nonzero(norms)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        weight = given(weight)
        combined = weight + self.inner.delta(weight)
        return combined * self._factors(self.measured(combined), slice(None))[:, None] - weight

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        blocks = blocks_of(rows, self.inner.row_unit)
        with scratch((longest(blocks), rows.shape[1]), rows.dtype, rows.device) as buffer:
            for first, last in blocks:
                combined = self._combine(base[first:last], start + first, buffer[: last - first])
                factors = self._factors(self.measured(combined), slice(start + first, start + last))
                _blend_(rows[first:last], base[first:last], combined, factors[:, None], multiplier)

    @property
    def work(self) -> int | None:
        return self.inner.work

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        y = operation(x)
        factors = self._factors(self._known_norms(operation), slice(None))
        return operation.scaled(y + self.inner.forward(x, operation), factors) - y


@dataclass(frozen=True, eq=False, repr=False)
class ColumnDecomposed(Decomposed):
    """d (i,) and ‖V‖ of each input channel, over outputs and kernel positions."""

    kind: ClassVar[str] = "column decomposed"
    row_unit = 0

    @property
    def size(self) -> tuple[int | None, int | None]:
        return self.inner.size

    def measured(self, combined: Tensor) -> Tensor:
        return self._norms(combined.square().sum(0))

    def _norms(self, squares: Tensor) -> Tensor:
        """From the sum over all rows of V² (c,)."""
        return squares.view(self.magnitude.numel(), -1).sum(1).sqrt()

    def _factors(self, norms: Tensor, columns: int) -> Tensor:
        """d/‖V‖ for every column; kernel positions of one input channel share it."""
        channels = self.magnitude.numel()
        return (self.magnitude / _nonzero(norms)).repeat_interleave(columns // channels)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        weight = given(weight)
        combined = weight + self.inner.delta(weight)
        return combined * self._factors(self.measured(combined), weight.shape[1]) - weight

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Two passes, so that V is never held whole: its norms need all rows, its values only one block.
        blocks = blocks_of(rows, self.inner.row_unit)
        height, columns = longest(blocks), rows.shape[1]
        squares, ones = rows.new_zeros(columns), rows.new_ones(height)
        with scratch((2, height, columns), rows.dtype, rows.device) as (buffer, squared):
            for first, last in blocks:
                count = last - first
                combined = self._combine(base[first:last], start + first, buffer[:count])
                own = torch.mul(combined, combined, out=squared[:count])
                squares.addmv_(own.T, ones[:count])  # faster than a sum over rows
            factors = self._factors(self._norms(squares), columns)
            for first, last in blocks:
                if len(blocks) > 1:
                    combined = self._combine(base[first:last], start + first, buffer[: last - first])
                _blend_(rows[first:last], base[first:last], combined, factors, multiplier)

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped:
            return super().forward(x, operation)
        factors = self.magnitude / _nonzero(self._known_norms(operation))
        scaled = operation.scaled(x, factors)
        return operation(scaled) + self.inner.forward(scaled, operation) - operation(x)


def _nonzero(norms: Tensor) -> Tensor:
    return norms + torch.finfo(norms.dtype).eps  # as LyCORIS does, so that equal results are equal


def _blend_(rows: Tensor, base: Tensor, combined: Tensor, factors: Tensor, multiplier: float) -> None:
    """rows += multiplier·(combined·factors − base); uses ``combined`` up."""
    if base.data_ptr() != rows.data_ptr():
        rows.add_(combined.mul_(factors).sub_(base), alpha=multiplier)
    elif multiplier == 1.0:  # one pass less, and the same to the last bit
        torch.mul(combined, factors, out=rows)
    else:
        rows.lerp_(combined.mul_(factors), multiplier)
