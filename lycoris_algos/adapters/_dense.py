"""Parts that store their change as it is, element for element. One algebra, four keys (full.py, norm.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import compute_dtype, times, to_compute
from ..ops.rows import block_rows, row_blocks
from ..ops.scratch import scratch
from ._base import Part


@dataclass(frozen=True, eq=False)
class DenseDelta(Part, register=False):
    """ΔW is the stored tensor, in the parameter's own shape."""

    linear: ClassVar[bool] = True

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

    def multiplied(self, factor: float) -> DenseDelta | None:
        return replace(self, change=times(self.change, factor))

    def fits(self, shape: Sequence[int]) -> None:
        # As matrices: a 1×1 convolution may be a Linear to the model, and a change that was combined without
        # the base weight is flat, since nothing told its kernel.
        if self.matrix_shape != (shape[0] if shape else 1, math.prod(shape[1:])):
            raise ShapeMismatchError(
                f"{self.title} is {'×'.join(map(str, self.change.shape))}, "
                f"but the {self.target} is {'×'.join(map(str, shape))}"
            )

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> DenseDelta:
        # Moved, but not cast: a cast copy would be as large as the weight. add_rows_ casts by blocks.
        moved = self.change.to(device, non_blocking=True)
        return replace(self, change=moved.reshape(self.matrix_shape))

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        dtype = compute_dtype(self.change.dtype)
        return to_compute(self.change, self.change.device, dtype)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        count, columns = rows.shape
        if self.change.dtype == rows.dtype:
            rows.add_(self.change[start : start + count], alpha=multiplier)
            return
        step = block_rows(count, columns, rows.dtype, rows.device)
        with scratch((step, columns), rows.dtype, rows.device) as buffer:
            for begin, end in row_blocks(count, step):
                own = buffer[: end - begin].copy_(self.change[start + begin : start + end])
                rows[begin:end].add_(own, alpha=multiplier)
