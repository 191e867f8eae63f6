"""(IA)³: each output or input channel of a layer is scaled.

    on_input = 0:  W'[o, …] = W[o, …]·(1 + m·w[o])
    on_input = 1:  W'[o, i, k…] = W[o, i, k…]·(1 + m·w[i])

``weight`` holds w, (o,) or (i,) for a Linear, (1, c, 1…) for a convolution; ``on_input`` is 0 or 1, stored as
any number type, since trainers cast it with everything else. The bias stays as it is: LyCORIS' training
forward, which rebuilds the weight, does not scale it.

PEFT stores its own form, ``ia3_l``, which multiplies instead of adding (so 1 changes nothing) and tells the
axis by its shape: (o, 1) or (1, i). On the output it scales the bias as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..errors import BadValueError, ShapeMismatchError
from ..ops.dtypes import times
from ..ops.starting import pointwise, zeros
from ..structures import ColumnScaling, RowScaling
from ._base import FLOAT, Algorithm, Base, Extra, Shape
from ._keys import KeySpec
from ._stored import number, tensor

_REFERENCE = "https://arxiv.org/abs/2205.05638"


@dataclass(frozen=True, eq=False)
class IA3(Algorithm):
    """One layer's (IA)³ as LyCORIS stores it. Formula and shapes: this module."""

    algo: ClassVar[str] = "ia3"
    title: ClassVar[str] = "(IA)³"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("weight", "on_input"))
    needs_weight: ClassVar[bool] = True

    weight: Tensor = tensor("weight")
    on_input: float = number("on_input")
    trained_as: ClassVar[tuple[str, ...]] = ("ia3",)

    @classmethod
    def begin(cls, weight: Tensor, *, train_on_input: bool = False) -> IA3:
        """Every channel is scaled by 1."""
        channels = weight.shape[1 if train_on_input else 0]
        kernel = pointwise(weight.shape)
        return cls(zeros(weight, *((1,) if kernel else ()), channels, *kernel), float(train_on_input))

    def check(self) -> None:
        if self.weight.numel() == 0 or self.weight.numel() != max(self.weight.shape, default=0):
            raise ShapeMismatchError(
                f"'weight' has the shape {tuple(self.weight.shape)}, but must hold one number per channel"
            )
        if self.on_input not in (0.0, 1.0):
            raise BadValueError(f"'on_input' is {self.on_input}, but must be 0 or 1")

    @property
    def matrix_shape(self) -> tuple[int | None, int | None]:
        return (None if self.on_input else self.weight.numel()), None

    def fits(self, shape: Sequence[int]) -> None:
        axis = 1 if self.on_input else 0
        channels = shape[axis] if len(shape) > axis else 0
        if channels != self.weight.numel():
            raise ShapeMismatchError(
                f"(IA)³ scales {self.weight.numel()} {'input' if axis else 'output'} channels, "
                f"but the weight is {'×'.join(map(str, shape))}"
            )

    def multiplied(self, factor: Factor) -> IA3:
        return replace(self, weight=times(self.weight, factor))

    def structure(
        self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None
    ) -> RowScaling | ColumnScaling:
        return _scaling(self.weight.reshape(-1), bool(self.on_input), shape)


@dataclass(frozen=True, eq=False)
class PeftIA3(Algorithm):
    """One layer's (IA)³ as PEFT stores it for a Linear: (o, 1) or (1, i)."""

    algo: ClassVar[str] = "ia3_peft"
    title: ClassVar[str] = "(IA)³"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("ia3_l",))
    needs_weight: ClassVar[bool] = True

    factors: Tensor = tensor("ia3_l")

    @property
    def _on_input(self) -> bool:
        return self.factors.shape[0] == 1

    def check(self) -> None:
        if self.factors.dim() != 2 or 1 not in self.factors.shape or self.factors.numel() < 2:
            raise ShapeMismatchError(
                f"'ia3_l' has the shape {tuple(self.factors.shape)}. Only PEFT's (IA)³ of Linear layers is "
                "known, (o, 1) or (1, i): that of a convolution does not say which side it scales"
            )

    @property
    def matrix_shape(self) -> tuple[int | None, int | None]:
        return (None, self.factors.numel()) if self._on_input else (self.factors.numel(), None)

    def bias_extras(self) -> tuple[Extra, ...]:
        return () if self._on_input else (BiasScale(self.factors.reshape(-1)),)

    def structure(
        self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None
    ) -> RowScaling | ColumnScaling:
        return _scaling(_added(self.factors, dtype), self._on_input, shape)


@dataclass(frozen=True, eq=False)
class BiasScale(Extra):
    """What PEFT's (IA)³ on the output does to a bias, b' = b + m·b·(l − 1); follows from the algorithm."""

    algo: ClassVar[str] = "ia3_peft_bias"
    title: ClassVar[str] = "(IA)³"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec()
    target: ClassVar[str] = "bias"
    needs_weight: ClassVar[bool] = True
    optional: ClassVar[bool] = True

    factors: Tensor

    def check(self) -> None:
        """The algorithm has checked it."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.factors.numel(), 1

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> RowScaling:
        return RowScaling(_added(self.factors, dtype))


def _scaling(vector: Tensor, on_input: bool, shape: Sequence[int]) -> RowScaling | ColumnScaling:
    return ColumnScaling(vector, math.prod(shape[2:])) if on_input else RowScaling(vector)


def _added(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to 1, from what PEFT multiplies by."""
    return factors.to(dtype).reshape(-1) - 1.0
