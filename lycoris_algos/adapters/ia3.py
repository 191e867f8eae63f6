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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError, ShapeMismatchError
from ..ops.dtypes import times, to_compute
from ._base import Core, IndirectCore, Part
from ._keys import KeySpec
from ._stored import number, tensor

_REFERENCE = "https://arxiv.org/abs/2205.05638"


@dataclass(frozen=True, eq=False)
class IA3(Core):
    """One layer's (IA)³ as LyCORIS stores it. Formula and shapes: this module."""

    algo: ClassVar[str] = "ia3"
    title: ClassVar[str] = "(IA)³"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("weight", "on_input"))
    needs_weight: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    weight: Tensor = tensor("weight")
    on_input: float = number("on_input")

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

    def multiplied(self, factor: float) -> IA3:
        return replace(self, weight=times(self.weight, factor))

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> IA3:
        vector = to_compute(self.weight, device, dtype).reshape(-1)
        if self.on_input:  # one factor per column of the matrix, whatever the kernel
            columns = torch.Size(shape).numel() // shape[0]
            if columns != vector.numel():
                vector = vector.repeat_interleave(columns // vector.numel())
        return replace(self, weight=vector)

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        return weight * (self.weight if self.on_input else self.weight[:, None])

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        own = self.weight if self.on_input else self.weight[start : start + rows.shape[0], None]
        rows.addcmul_(base, own, value=multiplier)


@dataclass(frozen=True, eq=False)
class PeftIA3(IndirectCore):
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

    def bias_parts(self) -> tuple[Part, ...]:
        return () if self._on_input else (BiasScale(self.factors.reshape(-1)),)

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> IA3:
        added = to_compute(self.factors, device, dtype) - 1.0
        return IA3(added, float(self._on_input)).ready(shape, device, dtype)


@dataclass(frozen=True, eq=False)
class BiasScale(Part):
    """What PEFT's (IA)³ on the output does to a bias, b' = b + m·b·(l − 1); follows from the core."""

    algo: ClassVar[str] = "ia3_peft_bias"
    title: ClassVar[str] = "(IA)³"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec()
    target: ClassVar[str] = "bias"
    needs_weight: ClassVar[bool] = True
    optional: ClassVar[bool] = True

    factors: Tensor

    def check(self) -> None:
        """The core has checked it."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.factors.numel(), 1

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> BiasScale:
        return replace(self, factors=to_compute(self.factors, device, dtype))

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        return weight * (self.factors - 1.0)[:, None]

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        own = self.factors[start : start + rows.shape[0], None] - 1.0
        rows.addcmul_(base, own, value=multiplier)
