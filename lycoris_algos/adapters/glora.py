"""GLoRA: a low-rank change that is added, and another that the weight itself passes through.

    ΔW = α/r · (b1·b2 + (W·a1)·a2)          a1 (i, r), a2 (r, i), b1 (o, r), b2 (r, i·∏k)

On a convolution W·a contracts the input channels at each kernel position. With a Tucker kernel ``bm``
(r, r, k…) b2 is (r, i, 1…). LyCORIS before 3.0 stored every pair the other way round (b2·b1, (W·a2)·a1); the
shapes tell which, and where they fit both (r = i = o) the newer order is meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import times, to_compute
from ..ops.products import addmm_rows_
from ..ops.rows import row_blocks, rows_per_block
from ..ops.tucker import absorb_input
from ._base import Core, scale
from ._keys import KeySpec
from ._stored import number, require_matrix, row_numel, tensor


@dataclass(frozen=True, eq=False)
class GLoRA(Core):
    """One layer's GLoRA. Formula and shapes: this module."""

    algo: ClassVar[str] = "glora"
    title: ClassVar[str] = "GLoRA"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.07967"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("a1.weight", "a2.weight", "b1.weight", "b2.weight"), optional=("bm.weight", "alpha")
    )
    needs_weight: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    a1: Tensor = tensor("a1.weight")
    a2: Tensor = tensor("a2.weight")
    b1: Tensor = tensor("b1.weight")
    b2: Tensor = tensor("b2.weight")
    bm: Tensor | None = tensor("bm.weight", optional=True)
    alpha: float | None = number("alpha")

    @property
    def rank(self) -> int:
        return self._in_order[1].shape[0]

    def check(self) -> None:
        for name, value in self.tensors():
            require_matrix(name, value)
        if not _chained(*self._in_order):
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in self.tensors())
            raise ShapeMismatchError(f"its factors fit each other in no order: {shapes}")

    @cached_property
    def _in_order(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a1, a2, b1, b2 in the newer order. Where both orders chain (i = o), a rank is the smaller size."""
        newer, older = (self.a1, self.a2, self.b1, self.b2), (self.a2, self.a1, self.b2, self.b1)
        if _chained(*newer) and not (_chained(*older) and older[1].shape[0] < newer[1].shape[0]):
            return newer
        return older

    @property
    def matrix_shape(self) -> tuple[int, int]:
        _, _, b1, b2 = self._in_order
        kernel = 1 if self.bm is None else math.prod(self.bm.shape[2:])
        return b1.shape[0], row_numel(b2) * kernel

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        _, _, b1, b2 = self._in_order
        inputs, kernel = (b2.shape[1:], ()) if self.bm is None else (b2.shape[1:2], self.bm.shape[2:])
        return (b1.shape[0], *inputs, *kernel)

    @property
    def exact_rank(self) -> int:
        a1, _, _, _ = self._in_order
        return self.rank * (1 + self.matrix_shape[1] // a1.shape[0])

    def multiplied(self, factor: float) -> GLoRA:
        # One of each pair, and in either order of storing them.
        return replace(self, a1=times(self.a1, factor), b1=times(self.b1, factor))

    def fits(self, shape: Sequence[int]) -> None:
        super().fits(shape)
        inputs = self._in_order[0].shape[0]
        if len(shape) < 2 or shape[1] != inputs:
            raise ShapeMismatchError(
                f"GLoRA takes {inputs} input channels, but the weight is {'×'.join(map(str, shape))}"
            )

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> GLoRA:
        a1, a2, b1, b2 = (to_compute(f, device, dtype).flatten(1) for f in self._in_order)
        if self.bm is not None:
            b2 = absorb_input(to_compute(self.bm, device, dtype), b2)
        return GLoRA(a1, a2, b1, b2, None, self.alpha)

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        channels = weight.view(weight.shape[0], self.a1.shape[0], -1)
        passed = torch.einsum("oik,ir,rj->ojk", channels, self.a1, self.a2)
        return (self.b1 @ self.b2 + passed.reshape(weight.shape)) * scale(self.alpha, self.rank)

    def ready_low_rank(self, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        assert weight is not None  # needs_weight
        channels = weight.reshape(weight.shape[0], self.a1.shape[0], -1)
        # W·a1 at each kernel position is a rank of its own: (W·a1)·a2 = up·(a2 ⊗ I).
        passed = torch.einsum("oik,ir->ork", channels, self.a1).reshape(weight.shape[0], -1)
        same = torch.eye(channels.shape[2], dtype=self.a2.dtype, device=self.a2.device)
        up = torch.cat((self.b1, passed), dim=1) * scale(self.alpha, self.rank)
        return up, torch.cat((self.b2, torch.kron(self.a2.contiguous(), same)))

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        value = multiplier * scale(self.alpha, self.rank)
        own = self.b1[start : start + rows.shape[0]]
        inputs = self.a1.shape[0]
        if rows.shape[1] == inputs:  # both terms as one product, so that the weight is gone through once
            left = torch.cat((own, base @ self.a1), dim=1)
            addmm_rows_(rows, left, torch.cat((self.b2, self.a2)), value)
            return
        count, columns = rows.shape
        for first, last in row_blocks(count, rows_per_block(columns, rows.dtype, rows.device)):
            channels = base[first:last].view(last - first, inputs, -1)
            passed = torch.matmul(self.a2.T, torch.matmul(self.a1.T, channels))
            addmm_rows_(rows[first:last], own[first:last], self.b2, value)
            rows[first:last].view(channels.shape).add_(passed, alpha=value)


def _chained(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> bool:
    """Whether the factors can be multiplied in the newer order."""
    rank = a2.shape[0]
    ranks_agree = row_numel(a1) == row_numel(b1) == b2.shape[0] == rank
    return ranks_agree and a1.shape[0] == row_numel(a2) and row_numel(b2) % a1.shape[0] == 0
