"""GLoKr: GLoRA with Kronecker products in the place of its low-rank ones. This pack's own convention.

    ΔW = s · (B + W·A)          A = a_w1 ⊗ a_w2 (i, i)          B = b_w1 ⊗ b_w2 (o, i·∏k)

LyCORIS announced GLoKr and never shipped it: its source was a copy of LoKr, no file of it can exist, and no
keys were ever defined. What the name can only mean is written down here, so that files made by this pack
have a meaning: keys ``glokr_a_*`` and ``glokr_b_*`` with LoKr's endings, each factor whole or low-rank as in
LoKr (``_t2``, a Tucker kernel, for B only), s = alpha/r with r of the low-rank factors, 1 where all are
whole. On a convolution W·A contracts input channels at each kernel position, as in GLoRA. A is never formed:
its two factors are contracted with the two halves of the input axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.kronecker import add_kron_rows_
from ..ops.rows import row_blocks, rows_per_block
from ._base import Core, scale
from ._keys import KeySpec
from ._stored import number, require_equal, tensor
from .lokr import LoKr


def _factor(name: str) -> tuple[tuple[str, ...], ...]:
    return ((name,), (f"{name}_a", f"{name}_b"))


@dataclass(frozen=True, eq=False)
class GLoKr(Core):
    """One layer's GLoKr. Formula and shapes: this module."""

    algo: ClassVar[str] = "glokr"
    title: ClassVar[str] = "GLoKr"
    reference: ClassVar[str] = "https://github.com/KohakuBlueleaf/LyCORIS/issues/68"
    keys: ClassVar[KeySpec] = KeySpec(
        choices=(
            _factor("glokr_a_w1"),
            _factor("glokr_a_w2"),
            _factor("glokr_b_w1"),
            (*_factor("glokr_b_w2"), ("glokr_b_w2_a", "glokr_b_w2_b", "glokr_b_t2")),
        ),
        optional=("alpha",),
    )
    needs_weight: ClassVar[bool] = True

    a_w1: Tensor | None = tensor("glokr_a_w1", optional=True)
    a_w1_a: Tensor | None = tensor("glokr_a_w1_a", optional=True)
    a_w1_b: Tensor | None = tensor("glokr_a_w1_b", optional=True)
    a_w2: Tensor | None = tensor("glokr_a_w2", optional=True)
    a_w2_a: Tensor | None = tensor("glokr_a_w2_a", optional=True)
    a_w2_b: Tensor | None = tensor("glokr_a_w2_b", optional=True)
    b_w1: Tensor | None = tensor("glokr_b_w1", optional=True)
    b_w1_a: Tensor | None = tensor("glokr_b_w1_a", optional=True)
    b_w1_b: Tensor | None = tensor("glokr_b_w1_b", optional=True)
    b_w2: Tensor | None = tensor("glokr_b_w2", optional=True)
    b_w2_a: Tensor | None = tensor("glokr_b_w2_a", optional=True)
    b_w2_b: Tensor | None = tensor("glokr_b_w2_b", optional=True)
    b_t2: Tensor | None = tensor("glokr_b_t2", optional=True)
    alpha: float | None = number("alpha")

    def _passed(self) -> LoKr:
        """A, without its scale."""
        return LoKr(self.a_w1, self.a_w1_a, self.a_w1_b, self.a_w2, self.a_w2_a, self.a_w2_b)

    def _added(self) -> LoKr:
        """B, without its scale."""
        factors = (self.b_w1, self.b_w1_a, self.b_w1_b, self.b_w2, self.b_w2_a, self.b_w2_b, self.b_t2)
        return LoKr(*factors)

    @property
    def rank(self) -> int | None:
        own = self._added().rank
        return self._passed().rank if own is None else own

    def check(self) -> None:
        passed, added = self._passed(), self._added()
        passed.check()
        added.check()
        outputs, inputs = passed.matrix_shape
        require_equal("size of A", {"its rows": outputs, "its columns": inputs})
        ranks = {"A": passed.rank, "B": added.rank}
        require_equal("rank", {name: rank for name, rank in ranks.items() if rank is not None})

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self._added().matrix_shape

    def fits(self, shape: Sequence[int]) -> None:
        super().fits(shape)
        inputs = self._passed().matrix_shape[0]
        if len(shape) < 2 or shape[1] != inputs:
            raise ShapeMismatchError(
                f"GLoKr takes {inputs} input channels, but the weight is {'×'.join(map(str, shape))}"
            )

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> GLoKr:
        s = scale(self.alpha, self.rank)
        passed, added = (lokr.ready_whole(device, dtype) for lokr in (self._passed(), self._added()))
        a_w1, b_w1 = (whole[0] if s == 1.0 else whole[0] * s for whole in (passed, added))
        return GLoKr(a_w1=a_w1, a_w2=passed[1], b_w1=b_w1, b_w2=added[1])

    def _whole(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self.a_w1 is not None
        assert self.a_w2 is not None
        assert self.b_w1 is not None
        assert self.b_w2 is not None
        return self.a_w1, self.a_w2, self.b_w1, self.b_w2

    def _pass(self, rows: Tensor) -> Tensor:
        """W·A for rows (n, i·∏k)."""
        first, second, _, _ = self._whole()
        halves = rows.reshape(rows.shape[0], first.shape[0], second.shape[0], -1)
        return torch.einsum("npqk,pa,qb->nabk", halves, first, second).reshape(rows.shape)

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        _, _, first, second = self._whole()
        return torch.kron(first, second.contiguous()) + self._pass(weight)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        _, _, w1, w2 = self._whole()
        count, columns = rows.shape
        for first, last in row_blocks(count, rows_per_block(columns, rows.dtype, rows.device)):
            passed = self._pass(base[first:last])
            add_kron_rows_(rows[first:last], start + first, w1, w2, multiplier)
            rows[first:last].add_(passed, alpha=multiplier)
