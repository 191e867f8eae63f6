"""LoHa: the Hadamard (elementwise) product of two low-rank matrices.

    ΔW = α/r · (w1a·w1b) ⊙ (w2a·w2b)          w1a, w2a (o, r), w1b, w2b (r, i·∏k)

With Tucker kernels t1, t2 (r, r, k…) each half is Σ_ab t[a, b, k…]·wa[a, p]·wb[b, q], and wa is stored
transposed, (r, o), wb (r, i). The rank is always that of ``hada_w1_b``, whose first axis is r in every form.
α/r enters once: LyCORIS' own merge applies it twice, its training forward does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.dtypes import times, to_compute
from ..ops.hadamard import fit_hadamard, khatri_rao
from ..ops.products import FEW, mm_rows
from ..ops.rows import block_rows, row_blocks, threads
from ..ops.scratch import scratch
from ..ops.tucker import absorb_input
from ._base import Core, pays, scale
from ._keys import KeySpec
from ._stored import number, require_equal, require_matrix, row_numel, tensor
from .lora import LoRA

# Up to this rank, one matrix product straight into the weight is faster than two products and a pass over
# them (measured for ranks of 4, 6 and 8 with one and two threads; see docs/benchmarks.md).
_AS_LORA = 36


@dataclass(frozen=True, eq=False)
class LoHa(Core):
    """One layer's LoHa. Formula and shapes: this module."""

    algo: ClassVar[str] = "loha"
    title: ClassVar[str] = "LoHa"
    reference: ClassVar[str] = "https://arxiv.org/abs/2108.06098"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        together=(("hada_t1", "hada_t2"),),
        optional=("alpha", "scale"),
    )
    linear: ClassVar[bool] = True

    w1_a: Tensor = tensor("hada_w1_a")
    w1_b: Tensor = tensor("hada_w1_b")
    w2_a: Tensor = tensor("hada_w2_a")
    w2_b: Tensor = tensor("hada_w2_b")
    t1: Tensor | None = tensor("hada_t1", optional=True)
    t2: Tensor | None = tensor("hada_t2", optional=True)
    alpha: float | None = number("alpha")
    fixed_scale: float | None = number("scale")

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def check(self) -> None:
        for name, value in self.tensors():
            require_matrix(name, value)
        for n, a, b, t in ((1, self.w1_a, self.w1_b, self.t1), (2, self.w2_a, self.w2_b, self.t2)):
            ranks = {f"hada_w{n}_b": b.shape[0]}
            ranks[f"hada_w{n}_a"] = row_numel(a) if t is None else a.shape[0]
            if t is not None:
                ranks[f"hada_t{n}"] = t.shape[0]
                ranks[f"hada_t{n} (second axis)"] = t.shape[1]
            require_equal("rank", ranks)
        require_equal("rank", {"hada_w1_b": self.w1_b.shape[0], "hada_w2_b": self.w2_b.shape[0]})
        (o1, i1), (o2, i2) = self._half_shape(1), self._half_shape(2)
        require_equal("output size", {"hada_w1_a": o1, "hada_w2_a": o2})
        require_equal("input size", {"hada_w1_b": i1, "hada_w2_b": i2})

    def _half_shape(self, half: int) -> tuple[int, int]:
        a, b, t = (self.w1_a, self.w1_b, self.t1) if half == 1 else (self.w2_a, self.w2_b, self.t2)
        if t is None:
            return a.shape[0], row_numel(b)
        return row_numel(a), row_numel(b) * math.prod(t.shape[2:])

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self._half_shape(1)

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        if self.t1 is not None:
            return (row_numel(self.w1_a), row_numel(self.w1_b), *self.t1.shape[2:])
        # A flat factor is that of a Linear or of a convolution: LyCORIS stores both alike.
        return (self.w1_a.shape[0], *self.w1_b.shape[1:]) if self.w1_b.dim() > 2 else None

    @property
    def exact_rank(self) -> int:
        return self.rank * self.w2_b.shape[0]

    @classmethod
    def approximate(cls, matrix: Tensor, rank: int) -> LoHa:
        """The LoHa of ``rank`` near a change (o, i·∏k), as alternating least squares finds it."""
        return cls(*fit_hadamard(matrix, rank), alpha=float(rank))

    def multiplied(self, factor: float) -> LoHa:
        return replace(self, w1_a=times(self.w1_a, factor))

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> LoHa | LoRA:
        """The LoRA of rank r² that it is, where that is the faster one to add."""

        def half(a: Tensor, b: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
            a, b = to_compute(a, device, dtype).flatten(1), to_compute(b, device, dtype).flatten(1)
            return (a, b) if t is None else (a.T, absorb_input(to_compute(t, device, dtype), b))

        w1_a, w1_b = half(self.w1_a, self.w1_b, self.t1)
        w2_a, w2_b = half(self.w2_a, self.w2_b, self.t2)
        if self.exact_rank <= _AS_LORA and pays(self.exact_rank, w1_a.shape[0], w1_b.shape[1]):
            up, down = khatri_rao(w1_a, w1_b, w2_a, w2_b)
            return LoRA(up, down, fixed_scale=scale(self.alpha, self.rank, self.fixed_scale))
        return LoHa(w1_a, w1_b, w2_a, w2_b, None, None, self.alpha, self.fixed_scale)

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        w1 = (self.w1_a * scale(self.alpha, self.rank, self.fixed_scale)) @ self.w1_b
        return w1 * (self.w2_a @ self.w2_b)

    def ready_low_rank(self, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        up, down = khatri_rao(self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        return up * scale(self.alpha, self.rank, self.fixed_scale), down

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Both products are as large as the weight, so they are made a block at a time in two buffers.
        count, columns = rows.shape
        value = multiplier * scale(self.alpha, self.rank, self.fixed_scale)
        if rows.numel() <= FEW:
            own = slice(start, start + count)
            rows.addcmul_(self.w1_a[own] @ self.w1_b, self.w2_a[own] @ self.w2_b, value=value)
            return
        unit = threads(rows.device)
        step = block_rows(count, columns, rows.dtype, rows.device, unit)
        with scratch((2, step, columns), rows.dtype, rows.device) as (first, second):
            for begin, end in row_blocks(count, step, unit):
                own = slice(start + begin, start + end)
                w1 = mm_rows(self.w1_a[own], self.w1_b, first[: end - begin])
                w2 = mm_rows(self.w2_a[own], self.w2_b, second[: end - begin])
                rows[begin:end].addcmul_(w1, w2, value=value)
