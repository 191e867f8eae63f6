"""Base classes of extras that store their change element for element (full.py, norm.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._types import Factor
from ..errors import ShapeMismatchError
from ..ops.dtypes import added, common_dtype, times
from ..ops.starting import zeros
from ..structures import Dense
from ._base import FLOAT, Base, Extra, Shape
from ._fitting import FitRequest, Fitted, Price

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class WholeTensor(Extra, register=False):
    """A tensor in the parameter's own shape."""

    change: Tensor

    def check(self) -> None:
        if self.change.numel() == 0:
            raise ShapeMismatchError(f"{self.title} holds an empty tensor")

    @property
    def matrix_shape(self) -> tuple[int, int]:
        shape = self.change.shape
        return (shape[0] if shape else 1), math.prod(shape[1:])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return tuple(self.change.shape)

    def fits(self, shape: Sequence[int]) -> None:
        # As matrices: a 1×1 convolution may be a Linear to the model, and a change that was combined without
        # the base weight is flat, since nothing told its kernel.
        if self.matrix_shape != (shape[0] if shape else 1, math.prod(shape[1:])):
            raise ShapeMismatchError(
                f"{self.title} is {'×'.join(map(str, self.change.shape))}, "
                f"but the {self.target} is {'×'.join(map(str, shape))}"
            )


@dataclass(frozen=True, eq=False)
class WholeChange(WholeTensor, register=False):
    """ΔW is the stored tensor."""

    @classmethod
    def begin(cls, weight: Tensor, *args: Any, **options: Any) -> Self:
        """ΔW is 0."""
        return cls(zeros(weight, *weight.shape))

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Dense:
        return Dense(self.change.reshape(self.matrix_shape))

    def multiplied(self, factor: Factor) -> WholeChange:
        return replace(self, change=times(self.change, factor))

    def holding(self, change: Tensor) -> Self:
        return replace(self, change=change)

    def row_part(self, start: int, count: int) -> Self | None:
        return self.holding(self.change.narrow(0, start, count).clone()) if self.change.dim() else None

    def of_row_parts(self, parts: Sequence[tuple[int, Self]], total: int) -> Self | None:
        changes = [part.change for _, part in parts]
        if any(change.dim() == 0 or change.shape[1:] != self.change.shape[1:] for change in changes):
            return None
        whole = self.change.new_zeros((total, *self.change.shape[1:]), dtype=common_dtype(changes))
        for (start, _), change in zip(parts, changes, strict=True):
            rows = whole[start : start + change.shape[0]]
            rows.copy_(added(rows, change))
        return self.holding(whole)


def fit_whole(cls: type[WholeChange], request: FitRequest) -> Fitted:
    """All of it, in the weight's shape, or flat where nothing tells its kernel."""
    shape = request.size if request.shape is None else tuple(request.shape)
    return Fitted(cls(request.change.delta().reshape(shape)))


def price_whole(request: FitRequest) -> list[Price]:
    """All of it, in its only size."""
    rows, columns = request.size
    return [Price(rows * columns, request.energy)]
