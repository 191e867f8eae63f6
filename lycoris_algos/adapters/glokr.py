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

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import solving
from ..structures import KroneckerProduct, Sum
from ._base import FLOAT, Algorithm, Base, Shape, scale
from ._keys import KeySpec
from ._stored import number, require_equal, tensor
from .lokr import LoKr


def _factor(name: str) -> tuple[tuple[str, ...], ...]:
    return ((name,), (f"{name}_a", f"{name}_b"))


@dataclass(frozen=True, eq=False)
class GLoKr(Algorithm):
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

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Sum:
        added = self._added().structure(shape, dtype)
        passed = self._passed().structure(shape, torch.float64)
        some = solving(next(value for _, value in self.tensors()))
        passed = passed.cast(some.device, some.dtype)
        s = scale(self.alpha, self.rank)
        first, second = (factor.delta().to(dtype) for factor in (passed.first, passed.second))
        through = KroneckerProduct(first * s, second, math.prod(shape[2:]))
        return Sum((through, replace(added, scale=s)))
