"""BOFT as PEFT stores it: the input channels rotated in blocks with a butterfly, the outputs rescaled.

    Q_t = (A_t − A_tᵀ)/2        R_t = (I − Q_t)(I + Q_t)⁻¹        W' = s ⊙ (W·(R_T … R_0)ᵀ)

``boft_R`` (T, n, b, b) holds A_t with n·b = i·∏k, the flattened input and kernel; ``boft_s`` holds s as
(o, 1) for a Linear and (1, o) for a convolution. Stage t regroups the inputs as ops/butterfly.py says: the
order within a block is PEFT's, not that of LyCORIS. There is no alpha and no constraint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.dtypes import solving
from ..ops.orthogonal import cayley
from ..structures import ColumnButterfly
from ._base import FLOAT, Algorithm, Base, Shape
from ._keys import KeySpec
from ._stored import require_matrix, tensor
from .boft import require_stages
from .oft import require_blocks


@dataclass(frozen=True, eq=False)
class InputBOFT(Algorithm):
    """One layer's BOFT of its inputs. Formula and shapes: this module."""

    algo: ClassVar[str] = "boft_inputs"
    title: ClassVar[str] = "BOFT (PEFT)"
    reference: ClassVar[str] = "https://arxiv.org/abs/2311.06243"
    keys: ClassVar[KeySpec] = KeySpec(required=("boft_R", "boft_s"))
    needs_weight: ClassVar[bool] = True

    blocks: Tensor = tensor("boft_R")
    rescale: Tensor = tensor("boft_s")

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["boft_R"].dim() == 4 else ["'boft_R' has not four dimensions"]

    def facts(self) -> dict[str, float]:
        return {"block size": self.blocks.shape[-1]}

    def check(self) -> None:
        require_matrix("boft_s", self.rescale)
        require_blocks("boft_R", self.blocks, 4)
        if len(self.blocks) > 1:  # blocks of a single stage may be of odd size
            require_stages("boft_R", self.blocks)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.rescale.numel(), self.blocks.shape[1] * self.blocks.shape[2]

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> ColumnButterfly:
        blocks = solving(self.blocks)
        return ColumnButterfly.of(cayley((blocks.mT - blocks) / 2), self.rescale.reshape(-1), dtype)
