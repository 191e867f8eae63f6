"""GLoRA: a low-rank change that is added, and another that the weight itself passes through.

    ΔW = α/r · (b1·b2 + (W·a1)·a2)          a1 (i, r), a2 (r, i), b1 (o, r), b2 (r, i·∏k)

On a convolution W·a contracts the input channels at each kernel position. With a Tucker kernel ``bm``
(r, r, k…) b2 is (r, i, 1…). LyCORIS before 3.0 stored every pair the other way round (b2·b1, (W·a2)·a1); the
shapes tell which, and where they fit both (r = i = o) the newer order is meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..errors import ShapeMismatchError
from ..ops.dtypes import solving, times
from ..ops.starting import has_kernel, kaiming, pointwise, zeros
from ..ops.tucker import absorb_input
from ..structures import Product
from ._base import FLOAT, Algorithm, Base, Shape, scale
from ._keys import KeySpec
from ._stored import number, require_equal, require_matrix, row_numel, tensor
from ._trained import TrainingFacts
from ._trainers import rank_stabilised, trained_alpha


@dataclass(frozen=True, eq=False)
class GLoRA(Algorithm):
    """One layer's GLoRA. Formula and shapes: this module."""

    algo: ClassVar[str] = "glora"
    title: ClassVar[str] = "GLoRA"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.07967"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("a1.weight", "a2.weight", "b1.weight", "b2.weight"), optional=("bm.weight", "alpha")
    )
    needs_weight: ClassVar[bool] = True
    trained_as: ClassVar[tuple[str, ...]] = ("glora",)

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
        if self.bm is not None:
            first, second = self.bm.shape[:2]
            kernel = {"bm.weight": first, "bm.weight (second axis)": second}
            require_equal("rank", {"b2.weight": self.rank, **kernel})

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

    def multiplied(self, factor: Factor) -> GLoRA:
        # One of each pair, and in either order of storing them.
        return replace(self, a1=times(self.a1, factor), b1=times(self.b1, factor))

    @classmethod
    def begin(
        cls,
        weight: Tensor,
        *,
        lora_dim: int = 4,
        alpha: float | None = 1.0,
        use_tucker: bool = False,
        use_scalar: bool = False,
        rs_lora: bool = False,
    ) -> GLoRA:
        """ΔW is 0: both inner factors are, or (``use_scalar``) what everything is multiplied by."""
        outputs, inputs, *kernel = weight.shape
        one = pointwise(weight.shape)
        tucker = use_tucker and has_kernel(weight.shape)
        inner = kaiming if use_scalar else zeros
        return cls(
            kaiming(weight, inputs, lora_dim, *one),
            inner(weight, lora_dim, inputs, *one),
            kaiming(weight, outputs, lora_dim, *one),
            inner(weight, lora_dim, inputs, *(one if tucker else kernel)),
            kaiming(weight, lora_dim, lora_dim, *kernel) if tucker else None,
            trained_alpha(alpha, lora_dim, rs_lora),
        )

    def fits(self, shape: Sequence[int]) -> None:
        super().fits(shape)
        inputs = self._in_order[0].shape[0]
        if len(shape) < 2 or shape[1] != inputs:
            raise ShapeMismatchError(
                f"GLoRA takes {inputs} input channels, but the weight is {'×'.join(map(str, shape))}"
            )

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Product:
        a1, a2, b1, b2 = (factor.flatten(1) for factor in self._in_order)
        if self.bm is not None:
            b2 = absorb_input(solving(self.bm), solving(b2)).to(dtype)
        positions = math.prod(shape[1:]) // a1.shape[0]
        return Product(a1, a2, positions, scale(self.alpha, self.rank), b1, b2)

    def as_trained(self, name: str, facts: TrainingFacts) -> Iterator[tuple[GLoRA, str]]:
        corrected = rank_stabilised(name, self, facts, always=True)
        if corrected is not None:
            yield corrected


def _chained(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> bool:
    """Whether the factors can be multiplied in the newer order."""
    rank = a2.shape[0]
    ranks_agree = row_numel(a1) == row_numel(b1) == b2.shape[0] == rank
    return ranks_agree and a1.shape[0] == row_numel(a2) and row_numel(b2) % a1.shape[0] == 0
