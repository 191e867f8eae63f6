"""BOFT: output channels rotated in blocks, over and over, with a butterfly shuffle between the stages.

    R_t = (I + Q_t)(I − Q_t)⁻¹          W' = s ⊙ (P_Tᵀ·R_T·P_T) … (P_0ᵀ·R_0·P_0)·W

``oft_blocks`` (T, n, b, b) with n·b = o; the four dimensions tell it from Diag-OFT. P_t regroups the rows
at distance 2^t·b/2. ``rescale``, ``alpha`` (a constraint) and its absence are as in oft.py, with one norm
over all stages. The rotation acts as R here, not Rᵀ as in Diag-OFT. At multiplier m the weight is
W + m·(W' − W); LyCORIS interpolates every stage instead, which is a polynomial of degree T in m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError, ShapeMismatchError
from ..ops.divisors import power2factorization
from ..ops.dtypes import solving
from ..ops.starting import ones, zeros
from ..structures import RowButterfly
from ._base import FLOAT, Algorithm, Base, Shape
from ._keys import KeySpec
from ._stored import tensor
from .oft import SkewBlocks, require_blocks, require_rescale

_REFERENCE = "https://arxiv.org/abs/2311.06243"


@dataclass(frozen=True, eq=False)
class ButterflyRotation(Algorithm):
    """Finished rotations (T, n, b, b) of all stages, and the rescaling."""

    algo: ClassVar[str] = "boft_diag"
    title: ClassVar[str] = "BOFT"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("oft_diag",), optional=("rescale",))
    needs_weight: ClassVar[bool] = True

    rotations: Tensor = tensor("oft_diag")
    rescale: Tensor | None = tensor("rescale", optional=True)

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["oft_diag"].dim() == 4 else ["'oft_diag' has not four dimensions"]

    def check(self) -> None:
        require_stages("oft_diag", self.rotations)
        require_rescale(self.rescale, self.matrix_shape[0])

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return self.rotations.shape[1] * self.rotations.shape[2], None

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> RowButterfly:
        return _butterfly(solving(self.rotations), self.rescale, dtype)


@dataclass(frozen=True, eq=False)
class BOFT(SkewBlocks):
    """One layer's BOFT. Formula and shapes: this module."""

    algo: ClassVar[str] = "boft"
    title: ClassVar[str] = "BOFT"
    reference: ClassVar[str] = _REFERENCE
    dimensions: ClassVar[int] = 4
    trained_as: ClassVar[tuple[str, ...]] = ("boft",)

    @classmethod
    def begin(
        cls, weight: Tensor, *, lora_dim: int = 4, constraint: float = 0.0, rescaled: bool = False
    ) -> BOFT:
        """Nothing is turned. Blocks are of at most ``lora_dim`` rows, and as many stages as reach all rows.

        Raises BadValueError where the rows are not an even number, up to ``lora_dim``, times a power of two.
        """
        outputs = weight.shape[0]
        size, count = power2factorization(outputs, lora_dim)
        if size is None:
            raise BadValueError(
                f"BOFT cannot cut {outputs} outputs into a power of two of even blocks of up to {lora_dim}: "
                "leave this layer out, or choose a larger lora_dim"
            )
        rescale = ones(weight, outputs, *(1 for _ in weight.shape[1:])) if rescaled else None
        return cls(zeros(weight, count.bit_length(), count, size, size), rescale, float(constraint))

    def check(self) -> None:
        super().check()
        require_stages("oft_blocks", self.blocks)

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> RowButterfly:
        return _butterfly(self.rotations(), self.rescale, dtype)


def _butterfly(rotations: Tensor, rescale: Tensor | None, dtype: torch.dtype) -> RowButterfly:
    """From rotations whose neighbours are rows at a distance, which ops/butterfly.py has in another order."""
    count, blocks, size, _ = rotations.shape
    paired = rotations.reshape(count, blocks, size // 2, 2, size // 2, 2)
    ordered = paired.permute(0, 1, 3, 2, 5, 4).reshape(rotations.shape)
    return RowButterfly.of(ordered, None if rescale is None else rescale.reshape(-1), dtype)


def require_stages(name: str, value: Tensor) -> None:
    """Raises ShapeMismatchError unless ``value`` (T, n, b, b) is a butterfly: b even, n·b/2 reached by T."""
    require_blocks(name, value, 4)
    stages, blocks, size, _ = value.shape
    if size % 2 or (blocks * size) % (2**stages * (size // 2)):
        raise ShapeMismatchError(
            f"'{name}' has the shape {tuple(value.shape)}, but {stages} stages of blocks of {size} "
            f"do not divide {blocks * size} outputs"
        )
