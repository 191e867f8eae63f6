"""Structures made of others: sums, one above the other, some rows of one, one for an enlarged weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ._base import Factors, Structure, common_unit
from .operation import LayerOperation
from .scaling import given


@dataclass(frozen=True, eq=False, repr=False)
class Sum(Structure):
    """ΔW = Σ multipliers[n]·terms[n](W): every term sees W itself. ``multipliers`` () are all 1."""

    kind: ClassVar[str] = "sum"

    terms: tuple[Structure, ...]
    multipliers: tuple[float, ...] = ()

    @property
    def size(self) -> tuple[int | None, int | None]:
        sizes = [term.size for term in self.terms]
        rows = next((rows for rows, _ in sizes if rows is not None), None)
        return rows, next((columns for _, columns in sizes if columns is not None), None)

    @property
    def needs_weight(self) -> bool:
        return any(term.needs_weight for term in self.terms)

    @property
    def row_unit(self) -> int:
        return common_unit(term.row_unit for term in self.terms)

    @property
    def exact_rank(self) -> int | None:
        ranks = [term.exact_rank for term in self.terms]
        return None if None in ranks or not ranks else sum(rank for rank in ranks if rank is not None)

    @property
    def _weighted(self) -> list[tuple[Structure, float]]:
        return list(zip(self.terms, self.multipliers or (1.0,) * len(self.terms), strict=True))

    def delta(self, weight: Tensor | None = None) -> Tensor:
        parts = [term.delta(weight) * multiplier for term, multiplier in self._weighted]
        if not parts:
            return torch.zeros_like(given(weight))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def reach(self) -> float | None:
        own = [(term.reach(), multiplier) for term, multiplier in self._weighted]
        known = [abs(multiplier) * reach for reach, multiplier in own if reach is not None]
        return sum(known) if len(known) == len(own) else None

    def factors(self, weight: Tensor | None = None) -> Factors | None:
        own = [(term.factors(weight), multiplier) for term, multiplier in self._weighted]
        pairs = [(pair, multiplier) for pair, multiplier in own if pair is not None]
        if len(pairs) < len(own) or not pairs:
            return None
        ups = [pair[0] * multiplier for pair, multiplier in pairs]
        return torch.cat(ups, dim=1), torch.cat([pair[1] for pair, _ in pairs])

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        if base is rows and any(term.needs_weight for term in self.terms[1:]):
            base = rows.clone()  # every term sees W, not what the one before made of it
        for term, own in self._weighted:
            term.add_rows_(rows, start, multiplier * own, base)

    @property
    def work(self) -> int | None:
        works = [term.work for term in self.terms]
        known = [work for work in works if work is not None]
        return sum(known) if len(known) == len(works) else None

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if not self.terms:
            return torch.zeros_like(operation(x))
        outputs = [term.forward(x, operation) * own for term, own in self._weighted]
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total


@dataclass(frozen=True, eq=False, repr=False)
class RowStack(Structure):
    """Structures of known heights, one above the other: each changes its own rows by those rows alone."""

    kind: ClassVar[str] = "row stack"
    row_unit = 0

    terms: tuple[Structure, ...]

    @property
    def _heights(self) -> list[int]:
        return [term.size[0] or 0 for term in self.terms]

    @property
    def size(self) -> tuple[int, int | None]:
        return sum(self._heights), self.terms[0].size[1]

    @property
    def needs_weight(self) -> bool:
        return any(term.needs_weight for term in self.terms)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        pieces = [None] * len(self.terms) if weight is None else torch.split(weight, self._heights)
        return torch.cat([term.delta(own) for term, own in zip(self.terms, pieces, strict=True)])

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        first = 0
        for term, height in zip(self.terms, self._heights, strict=True):
            own = slice(first, first + height)
            term.add_rows_(rows[own], 0, multiplier, base[own])
            first += height

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        if operation.grouped:
            return super().forward(x, operation)
        pieces = torch.split(operation.weight, self._heights)
        outputs = [
            term.forward(x, replace(operation, weight=own, known=None))
            for term, own in zip(self.terms, pieces, strict=True)
        ]
        return torch.cat(outputs, dim=operation.channel_axis)


@dataclass(frozen=True, eq=False, repr=False)
class _Wrapper(Structure):
    """A structure around another one, for a weight of another size."""

    inner: Structure

    @property
    def needs_weight(self) -> bool:
        return self.inner.needs_weight

    @property
    def row_unit(self) -> int:
        return self.inner.row_unit

    def reach(self) -> float | None:
        return self.inner.reach()


@dataclass(frozen=True, eq=False, repr=False)
class ScaledRows(_Wrapper):
    """Each row of another structure's change times a number of ``vector`` (o,): dropout of outputs."""

    kind: ClassVar[str] = "scaled rows"

    vector: Tensor

    @property
    def size(self) -> tuple[int, int | None]:
        return self.vector.numel(), self.inner.size[1]

    @property
    def exact_rank(self) -> int | None:
        return self.inner.exact_rank

    @property
    def work(self) -> int | None:
        return self.inner.work

    def reach(self) -> float | None:
        reach = self.inner.reach()
        return None if reach is None else reach * float(self.vector.abs().max())

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return self.inner.delta(weight) * self.vector[:, None]

    def factors(self, weight: Tensor | None = None) -> Factors | None:
        own = self.inner.factors(weight)
        return None if own is None else (own[0] * self.vector[:, None], own[1])

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        own = torch.zeros_like(rows)
        self.inner.add_rows_(own, start, multiplier, base)
        rows.addcmul_(own, self.vector[start : start + rows.shape[0], None])

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        return operation.scaled(self.inner.forward(x, operation), self.vector)


@dataclass(frozen=True, eq=False, repr=False)
class RowSlice(_Wrapper):
    """``count`` rows from ``start`` on of a structure for ``total`` rows: of a layer stored in pieces.

    The factors stay as they are; only where rows are counted from changes. That is exact where rows depend
    on no rows outside the slice: ``start`` and ``count`` are multiples of the inner ``row_unit``.
    """

    kind: ClassVar[str] = "row slice"

    start: int
    count: int
    total: int

    @property
    def size(self) -> tuple[int, int | None]:
        return self.count, self.inner.size[1]

    def fits(self, shape: Sequence[int]) -> None:
        if not shape or shape[0] != self.count:
            size = "×".join(map(str, shape)) or "a single number"
            raise ShapeMismatchError(f"{self.count} rows of the layer belong here, but the weight is {size}")
        self.inner.fits((self.total, *shape[1:]))

    def delta(self, weight: Tensor | None = None) -> Tensor:
        if weight is not None:
            above = weight.new_zeros((self.start, weight.shape[1]))
            below = weight.new_zeros((self.total - self.start - self.count, weight.shape[1]))
            weight = torch.cat((above, weight, below))
        return self.inner.delta(weight)[self.start : self.start + self.count]

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        self.inner.add_rows_(rows, self.start + start, multiplier, base)


@dataclass(frozen=True, eq=False, repr=False)
class Enlarged(_Wrapper):
    """A structure for a weight that is first enlarged with zeros to ``shape``."""

    kind: ClassVar[str] = "enlarged"

    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int | None, int | None]:
        return self.inner.size

    @property
    def exact_rank(self) -> int | None:
        return self.inner.exact_rank

    def new_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        require_enlargement(shape, self.shape)
        return self.shape

    def delta(self, weight: Tensor | None = None) -> Tensor:
        return self.inner.delta(weight)

    def factors(self, weight: Tensor | None = None) -> Factors | None:
        return self.inner.factors(weight)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        self.inner.add_rows_(rows, start, multiplier, base)


def require_enlargement(shape: Sequence[int], larger: Sequence[int]) -> None:
    """Raises ShapeMismatchError unless a weight of ``shape`` fits into the corner of one of ``larger``."""
    if len(shape) != len(larger) or any(a > b for a, b in zip(shape, larger, strict=True)):
        raise ShapeMismatchError(
            f"it asks for the shape {'×'.join(map(str, larger))}, "
            f"into which the weight {'×'.join(map(str, shape))} does not fit"
        )
