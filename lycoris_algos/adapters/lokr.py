"""LoKr: a Kronecker product of two small matrices, either of which may be low-rank itself.

    ΔW = s · w1 ⊗ w2          w1 (o1, i1), w2 (o2, i2·∏k), o = o1·o2, i = i1·i2

w1 is stored whole (``lokr_w1``) or as ``lokr_w1_a``·``lokr_w1_b``; w2 whole (``lokr_w2``, (o2, i2, k…)), as
``lokr_w2_a``·``lokr_w2_b``, or with a Tucker kernel ``lokr_t2`` (r, r, k…), where ``lokr_w2_a`` is stored
transposed, (r, o2). s = α/r with r from whichever factor is low-rank, once even when both are; 1 when both
are whole, where trainers ignore alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.dtypes import times, to_compute
from ..ops.kronecker import add_kron_rows_, kron_factors
from ..ops.lowrank import best_factors
from ..ops.tucker import absorb_input
from ._base import Core, scale
from ._keys import KeySpec
from ._stored import number, require_equal, require_matrix, row_numel, tensor


@dataclass(frozen=True, eq=False)
class LoKr(Core):
    """One layer's LoKr. Formula and shapes: this module."""

    algo: ClassVar[str] = "lokr"
    title: ClassVar[str] = "LoKr"
    reference: ClassVar[str] = "https://arxiv.org/abs/2309.14859"
    keys: ClassVar[KeySpec] = KeySpec(
        choices=(
            (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")),
            (
                ("lokr_w2",),
                ("lokr_w2_a", "lokr_w2_b"),
                ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            ),
        ),
        optional=("alpha", "scale"),
    )
    linear: ClassVar[bool] = True

    w1: Tensor | None = tensor("lokr_w1", optional=True)
    w1_a: Tensor | None = tensor("lokr_w1_a", optional=True)
    w1_b: Tensor | None = tensor("lokr_w1_b", optional=True)
    w2: Tensor | None = tensor("lokr_w2", optional=True)
    w2_a: Tensor | None = tensor("lokr_w2_a", optional=True)
    w2_b: Tensor | None = tensor("lokr_w2_b", optional=True)
    t2: Tensor | None = tensor("lokr_t2", optional=True)
    alpha: float | None = number("alpha")
    fixed_scale: float | None = number("scale")

    @property
    def rank(self) -> int | None:
        # The second axis of an _a factor is no rank where a Tucker kernel transposes it; a _b's first is.
        low_rank = self.w2_b if self.w2_b is not None else self.w1_b
        return None if low_rank is None else low_rank.shape[0]

    def check(self) -> None:
        for name, value in self.tensors():
            require_matrix(name, value)
        if self.w1_a is not None and self.w1_b is not None:
            require_equal("rank", {"lokr_w1_a": row_numel(self.w1_a), "lokr_w1_b": self.w1_b.shape[0]})
        if self.w2_a is not None and self.w2_b is not None:
            ranks = {"lokr_w2_b": self.w2_b.shape[0]}
            ranks["lokr_w2_a"] = row_numel(self.w2_a) if self.t2 is None else self.w2_a.shape[0]
            if self.t2 is not None:
                ranks["lokr_t2"] = self.t2.shape[0]
                ranks["lokr_t2 (second axis)"] = self.t2.shape[1]
            require_equal("rank", ranks)

    def facts(self) -> dict[str, float]:
        rows, columns = self.first_shape
        factor = {"factor": rows} if rows == columns else {"factor out": rows, "factor in": columns}
        return {**super().facts(), **factor}

    @property
    def matrix_shape(self) -> tuple[int, int]:
        (o1, i1), (o2, i2) = self.first_shape, self._second_shape()
        return o1 * o2, i1 * i2

    @property
    def first_shape(self) -> tuple[int, int]:
        """(o1, i1), the shape of w1."""
        if self.w1 is not None:
            return self.w1.shape[0], row_numel(self.w1)
        a, b = _both(self.w1_a, self.w1_b)
        return a.shape[0], row_numel(b)

    def _second_shape(self) -> tuple[int, int]:
        if self.w2 is not None:
            return self.w2.shape[0], row_numel(self.w2)
        a, b = _both(self.w2_a, self.w2_b)
        if self.t2 is None:
            return a.shape[0], row_numel(b)
        return row_numel(a), row_numel(b) * math.prod(self.t2.shape[2:])

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        (o1, i1), (o2, _) = self.first_shape, self._second_shape()
        if self.w2 is not None:
            return (o1 * o2, i1 * self.w2.shape[1], *self.w2.shape[2:])
        _, b = _both(self.w2_a, self.w2_b)
        # A flat pair is that of a Linear or of a convolution: LyCORIS stores both alike.
        return None if self.t2 is None else (o1 * o2, i1 * row_numel(b), *self.t2.shape[2:])

    @property
    def exact_rank(self) -> int:
        first, second = min(self.first_shape), min(self._second_shape())
        if self.w1_b is not None:
            first = min(first, self.w1_b.shape[0])
        return first * (second if self.w2_b is None else min(second, self.w2_b.shape[0]))

    @classmethod
    def of(cls, w1: Tensor, w2: Tensor, shape: Sequence[int] | None, rank: int | None = None) -> LoKr:
        """The LoKr with ΔW = w1 ⊗ w2 (o2, i2·∏k), stored as files of a weight of ``shape`` hold it.

        With ``rank``, w2 is cut to the best factors of that rank where they are smaller than w2.
        """
        if rank is not None and rank * sum(w2.shape) < w2.numel():
            left, right = best_factors(w2, torch.eye(w2.shape[1], dtype=w2.dtype, device=w2.device), rank)
            return cls(w1=w1, w2_a=left.contiguous(), w2_b=right.contiguous(), alpha=float(rank))
        kernel = () if shape is None else shape[2:]
        w2 = w2.reshape(w2.shape[0], w2.shape[1] // torch.Size(kernel).numel(), *kernel)
        return cls(w1=w1.contiguous(), w2=w2.contiguous(), alpha=1.0)

    def multiplied(self, factor: float) -> LoKr:
        if self.w1 is not None:
            return replace(self, w1=times(self.w1, factor))
        return replace(self, w1_a=times(_both(self.w1_a, self.w1_b)[0], factor))

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> LoKr:
        """w1 whole; w2 whole too, unless w1 is so small that w2 is nearly the weight."""
        w1, s = self._first(device, dtype), self._scale
        if self.w2 is None and w1.numel() < _WHOLE_FROM:
            a, b = self._second_halves(device, dtype)
            if b.shape[0] < min(a.shape[0], b.shape[1]):
                return LoKr(w1=w1, w2_a=a, w2_b=b, fixed_scale=s)
        return LoKr(w1=w1, w2=self._second(device, dtype), fixed_scale=s)

    def ready_whole(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(w1 with s in it, w2) as matrices on ``device`` in ``dtype``."""
        w1, s = self._first(device, dtype), self._scale
        return w1 if s == 1.0 else w1 * s, self._second(device, dtype)

    @property
    def _scale(self) -> float:
        return scale(self.alpha, self.rank, self.fixed_scale)

    def _first(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if self.w1 is not None:
            return to_compute(self.w1, device, dtype).flatten(1)
        a, b = (to_compute(f, device, dtype).flatten(1) for f in _both(self.w1_a, self.w1_b))
        return a @ b

    def _second(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if self.w2 is not None:
            return to_compute(self.w2, device, dtype).flatten(1)
        return torch.mm(*self._second_halves(device, dtype))

    def _second_halves(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        a, b = (to_compute(f, device, dtype).flatten(1) for f in _both(self.w2_a, self.w2_b))
        return (a, b) if self.t2 is None else (a.T, absorb_input(to_compute(self.t2, device, dtype), b))

    def best(self, rank: int) -> LoKr:
        """Its low-rank factors (either or both) cut to the best ``rank`` ranks, at the same scale."""
        cut = self
        if self.w1_a is not None and self.w1_b is not None:
            a, b = best_factors(self.w1_a.flatten(1), self.w1_b.flatten(1), rank)
            cut = replace(cut, w1_a=a, w1_b=b)
        if self.w2 is None:
            halves = self._second_halves(_both(self.w2_a, self.w2_b)[0].device, torch.float32)
            a, b = best_factors(*halves, rank)
            cut = replace(cut, w2_a=a, w2_b=b, t2=None)
        alpha = self.alpha
        if alpha is not None and self.rank is not None and cut.rank is not None:
            alpha *= cut.rank / self.rank
        return replace(cut, alpha=alpha)

    def shares_first(self, other: LoKr) -> bool:
        """Whether w1 is the same in both, so that their sum is one LoKr."""
        return _equal((self.w1, self.w1_a, self.w1_b), (other.w1, other.w1_a, other.w1_b))

    def shares_second(self, other: LoKr) -> bool:
        """Whether w2 is the same in both, so that their sum is one LoKr."""
        own, others = (self.w2, self.w2_a, self.w2_b, self.t2), (other.w2, other.w2_a, other.w2_b, other.t2)
        return _equal(own, others)

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert self.w1 is not None  # a ready form has it
        w2 = self.w2 if self.w2 is not None else torch.mm(*_both(self.w2_a, self.w2_b))
        return torch.kron(self.w1 * self._scale, w2.contiguous())

    def ready_low_rank(self, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.w1 is not None
        w2 = self.w2 if self.w2 is not None else _both(self.w2_a, self.w2_b)
        return kron_factors(self.w1 * self._scale, w2)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        assert self.w1 is not None
        multiplier *= self._scale
        if self.w2 is not None:
            add_kron_rows_(rows, start, self.w1, self.w2, multiplier)
            return
        # One product per element of a tiny w1, each over the rows and columns that it scales.
        a, b = _both(self.w2_a, self.w2_b)
        tall, wide = a.shape[0], b.shape[1]
        end = start + rows.shape[0]
        for block in range(start // tall, (end + tall - 1) // tall):
            first, last = max(start, block * tall), min(end, (block + 1) * tall)
            own = rows[first - start : last - start]
            left = a[first - block * tall : last - block * tall]
            for column in range(self.w1.shape[1]):
                part = own[:, column * wide : (column + 1) * wide]
                part.addmm_(left, b * self.w1[block, column], alpha=multiplier)


# From this many elements of w1 on, a whole w2 is small beside the weight (its share is 1/numel).
_WHOLE_FROM = 8


def _both(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    assert a is not None  # detection lets only complete pairs through
    assert b is not None
    return a, b


def _equal(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> bool:
    """Whether two lists of factors are there in the same places and hold the same numbers."""
    return all(
        (a is None) == (b is None) and (a is None or b is None or torch.equal(a.float(), b.float()))
        for a, b in zip(first, second, strict=True)
    )
