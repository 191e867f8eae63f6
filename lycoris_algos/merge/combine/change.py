"""A delta in the form that costs least: as two factors, dense, or as adapters that are not formed at all.

All of them answer by blocks of rows, which is how results are compared with what they should be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...adapters import LayerAdapter, ReadyLayer
from ...ops.lowrank import product_inner
from ...ops.rows import row_blocks, rows_per_block


class Change(ABC):
    """ΔW as a matrix (o, i·∏k)."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(o, i·∏k)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is computed."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop, in float32 or float64; a new tensor."""

    def dense(self) -> Tensor:
        """All of it."""
        return self.rows(0, self.size[0])


@dataclass(frozen=True, eq=False)
class Factors(Change):
    """up (o, r)·down (r, i·∏k)."""

    up: Tensor
    down: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def device(self) -> torch.device:
        return self.up.device

    def rows(self, start: int, stop: int) -> Tensor:
        return self.up[start:stop] @ self.down


@dataclass(frozen=True, eq=False)
class Dense(Change):
    """The matrix itself."""

    matrix: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def rows(self, start: int, stop: int) -> Tensor:
        return self.matrix[start:stop].clone()


@dataclass(frozen=True, eq=False)
class Adapters(Change):
    """Σ c·ΔW of adapters that do not depend on the weight; nothing is formed before it is asked for."""

    entries: Sequence[tuple[LayerAdapter, float]]
    matrix_size: tuple[int, int]
    on: torch.device

    @property
    def size(self) -> tuple[int, int]:
        return self.matrix_size

    @property
    def device(self) -> torch.device:
        return self.on

    def rows(self, start: int, stop: int) -> Tensor:
        block = torch.zeros((stop - start, self.matrix_size[1]), device=self.on)
        for ready, multiplier in self._ready:
            ready.add_rows_(block, start, multiplier)
        return block

    @cached_property
    def _ready(self) -> list[tuple[ReadyLayer, float]]:
        return [(a.ready(self.matrix_size, self.on, torch.float32), m) for a, m in self.entries]


def inner(first: Change, second: Change) -> float:
    """⟨first, second⟩, the sum of the products of all elements, added up in float64."""
    if isinstance(first, Factors) and isinstance(second, Factors):
        return product_inner((first.up, first.down), (second.up, second.down))
    total = 0.0
    rows, columns = first.size
    for start, stop in row_blocks(rows, rows_per_block(columns, torch.float64, first.device)):
        total += float((first.rows(start, stop).double() * second.rows(start, stop).double()).sum())
    return total


def gram(changes: Sequence[Change]) -> Tensor:
    """(n, n) float64: the inner products of all pairs."""
    found = torch.zeros((len(changes), len(changes)), dtype=torch.float64)
    for i, first in enumerate(changes):
        for j in range(i, len(changes)):
            found[i, j] = found[j, i] = inner(first, changes[j])
    return found


@dataclass(frozen=True)
class Difference:
    """How far a result is from what it should be: ΣD², Σ(D − D̂)², max|D| and max|D − D̂|."""

    energy: float
    lost: float
    largest: float
    error: float


def difference(wanted: Change, got: LayerAdapter | None) -> Difference:
    """``got`` (None: nothing) against ``wanted``, by rows. ``got`` does not depend on W."""
    rows, columns = wanted.size
    ready = None if got is None else got.ready(wanted.size, wanted.device, torch.float32)
    energy = lost = largest = error = 0.0
    for start, stop in row_blocks(rows, rows_per_block(columns, torch.float32, wanted.device)):
        block = wanted.rows(start, stop).float()
        squares, largest_here = _size(block)
        energy, largest = energy + squares, max(largest, largest_here)
        if ready is not None:
            ready.add_rows_(block, start, -1.0)
        squares, error_here = _size(block)
        lost, error = lost + squares, max(error, error_here)
    return Difference(energy, lost, largest, error)


def _size(block: Tensor) -> tuple[float, float]:
    """(Σx², max|x|) in two passes without a temporary."""
    low, high = torch.aminmax(block)
    norm = float(torch.linalg.vector_norm(block))
    return norm * norm, max(-float(low), float(high))
