"""The sparse residual that ``extract_locon --use_sparse_bias`` writes beside a low-rank core.

    ΔW.reshape(o, −1)[row, column] += value

``bias_indices`` (2, n) and ``bias_size`` (2,) are stored as int16, so an index above 32767 comes back
negative; it is read as the unsigned number that was meant. ``bias_values`` (n,).

Beside a Tucker core that tool takes the residual of the whole fine-tuned weight instead of its difference
to the base, so the values hold the base weight as well. Loading recognises this (network/corrections.py) and
uses ``SparseTarget``, which takes W out again: those elements then become exactly what was extracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import times, to_compute
from ._base import Part
from ._keys import KeySpec
from ._stored import indices, tensor

_INT16 = 2**16


@dataclass(frozen=True, eq=False)
class SparseWeight(Part):
    """Some elements of a weight. Formula and shapes: this module."""

    algo: ClassVar[str] = "sparse"
    title: ClassVar[str] = "sparse residual"
    reference: ClassVar[str] = "https://github.com/KohakuBlueleaf/LyCORIS/blob/main/lycoris/utils/__init__.py"
    keys: ClassVar[KeySpec] = KeySpec(required=("bias_indices", "bias_values", "bias_size"))
    target: ClassVar[str] = "weight"
    linear: ClassVar[bool] = True

    positions: Tensor = indices("bias_indices")
    values: Tensor = tensor("bias_values")
    size: Tensor = indices("bias_size")

    def check(self) -> None:
        count = self.values.numel()
        if self.positions.shape != (2, count) or self.size.numel() != 2:
            raise ShapeMismatchError(
                f"its sparse residual has {tuple(self.positions.shape)} positions for {count} values"
            )
        rows, columns = self.matrix_shape
        row, column = _unsigned(self.positions)
        outside = (row >= rows) | (column >= columns) | (row < 0) | (column < 0)
        if bool(outside.any()):
            raise ShapeMismatchError(f"its sparse residual has positions outside {rows}×{columns}")

    @property
    def matrix_shape(self) -> tuple[int, int]:
        rows, columns = _unsigned(self.size.reshape(-1)).tolist()
        return rows, columns

    def multiplied(self, factor: float) -> SparseWeight | None:
        return replace(self, values=times(self.values, factor))

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> SparseWeight:
        positions = _unsigned(self.positions.to(device, non_blocking=True))
        return replace(self, positions=positions, values=to_compute(self.values, device, dtype).reshape(-1))

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        dense = self.values.new_zeros(self.matrix_shape)
        return dense.index_put(tuple(self.positions), self.values, accumulate=True)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Values of other rows are added as zeros: sorting them out would wait for the GPU.
        row, column = self.positions
        own = (row >= start) & (row < start + rows.shape[0])
        values = torch.where(own, self.values * multiplier, 0)
        inside = torch.clamp(row - start, 0, rows.shape[0] - 1)
        rows.index_put_((inside, column), values, accumulate=True)


class SparseTarget(SparseWeight):
    """Elements of ΔW + W: the residual beside a Tucker core. Stored like ``SparseWeight``."""

    algo: ClassVar[str] = "sparse_target"
    title: ClassVar[str] = "sparse residual"
    keys: ClassVar[KeySpec] = KeySpec()
    needs_weight: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    def multiplied(self, factor: float) -> None:
        return None  # its values hold W as well

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        row, column = self.positions
        return super().ready_delta(None).index_put((row, column), -weight[row, column], accumulate=True)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        row, column = self.positions
        inside = torch.clamp(row - start, 0, rows.shape[0] - 1)
        without = replace(self, values=self.values - base[inside, column])
        SparseWeight.add_rows_(without, rows, start, multiplier, base)


def _unsigned(stored: Tensor) -> Tensor:
    """int64 with negative int16 read as the unsigned number of the same bits."""
    wide = stored.long()
    return torch.where(wide < 0, wide + _INT16, wide) if stored.dtype == torch.int16 else wide
