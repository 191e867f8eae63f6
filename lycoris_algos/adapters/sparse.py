"""The sparse residual that ``extract_locon --use_sparse_bias`` writes beside a LoRA.

    ΔW.reshape(o, −1)[row, column] += value

``bias_indices`` (2, n) and ``bias_size`` (2,) are stored as int16, so an index above 32767 comes back
negative; it is read as the unsigned number that was meant. ``bias_values`` (n,).

Beside a LoRA with a Tucker kernel that tool takes the residual of the whole fine-tuned weight instead of its
difference to the base, so the values hold the base weight as well. There ``SparseTarget`` is meant, which
takes W out again: those elements then become exactly what was extracted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..errors import ShapeMismatchError
from ..ops.dtypes import times
from ..structures import Sparse
from ._base import FLOAT, Algorithm, Base, Extra, Shape
from ._keys import KeySpec
from ._stored import indices, tensor
from .lora import LoRA

_REFERENCE = "https://github.com/KohakuBlueleaf/LyCORIS/blob/main/lycoris/utils/__init__.py"
_INT16 = 2**16


@dataclass(frozen=True, eq=False)
class _Elements(Extra, register=False):
    """Some elements of a weight. Shapes: this module."""

    target: ClassVar[str] = "weight"

    positions: Tensor = indices("bias_indices")
    values: Tensor = tensor("bias_values")
    size: Tensor = indices("bias_size")

    def check(self) -> None:
        count = self.values.numel()
        if self.positions.shape != (2, count) or self.size.numel() != 2:
            raise ShapeMismatchError(
                f"its sparse residual has {tuple(self.positions.shape)} positions for {count} values"
            )
        if self.positions.is_meta:  # an outline, without numbers
            return
        rows, columns = self.matrix_shape
        row, column = _unsigned(self.positions)
        outside = (row >= rows) | (column >= columns) | (row < 0) | (column < 0)
        if bool(outside.any()):
            raise ShapeMismatchError(f"its sparse residual has positions outside {rows}×{columns}")

    @property
    def matrix_shape(self) -> tuple[int, int]:
        rows, columns = _unsigned(self.size.reshape(-1)).tolist()
        return rows, columns

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Sparse:
        return Sparse(
            _unsigned(self.positions), self.values.reshape(-1), *self.matrix_shape, self.needs_weight
        )


@dataclass(frozen=True, eq=False)
class SparseWeight(_Elements):
    """Elements of ΔW. Formula and shapes: this module."""

    algo: ClassVar[str] = "sparse"
    title: ClassVar[str] = "sparse residual"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("bias_indices", "bias_values", "bias_size"))

    @classmethod
    def largest(cls, residual: Tensor, sparsity: float) -> SparseWeight | None:
        """The largest elements of ``residual`` (o, c), all but the share ``sparsity``; None if all are 0.

        As ``extract_locon`` chooses them: those that are no smaller than that quantile.
        """
        sizes = residual.abs().flatten()
        kept = max(1, sizes.numel() - math.ceil(sparsity * (sizes.numel() - 1)))
        bound = float(sizes.topk(min(kept, sizes.numel())).values[-1])
        row, column = ((residual.abs() >= bound) & (residual != 0)).nonzero(as_tuple=True)
        if not row.numel():
            return None
        positions = torch.stack((row, column))
        size = torch.tensor(residual.shape)
        kind = torch.int16 if max(residual.shape) < _INT16 // 2 else torch.int32
        return cls(positions.to(kind), residual[row, column], size.to(kind))

    def multiplied(self, factor: Factor) -> SparseWeight:
        return replace(self, values=times(self.values, factor))

    def beside(self, algorithm: Algorithm | None) -> tuple[Extra, str]:
        if not isinstance(algorithm, LoRA) or algorithm.mid is None:
            return self, ""
        note = "extract_locon's sparse residual holds the base weight as well (a bug of that tool): taken out"
        return SparseTarget(self.positions, self.values, self.size), note


@dataclass(frozen=True, eq=False)
class SparseTarget(_Elements):
    """Elements of ΔW + W: the residual beside a Tucker kernel. Stored like ``SparseWeight``."""

    algo: ClassVar[str] = "sparse_target"
    title: ClassVar[str] = "sparse residual"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec()
    needs_weight: ClassVar[bool] = True


def _unsigned(stored: Tensor) -> Tensor:
    """int64 with negative int16 read as the unsigned number of the same bits."""
    wide = stored.long()
    return torch.where(wide < 0, wide + _INT16, wide) if stored.dtype == torch.int16 else wide
