"""BOFT as PEFT stores it: the input channels rotated in blocks with a butterfly, the outputs rescaled.

    Q_t = (A_t − A_tᵀ)/2        R_t = (I − Q_t)(I + Q_t)⁻¹        W' = s ⊙ (W·(R_T … R_0)ᵀ)

``boft_R`` (T, n, b, b) holds A_t with n·b = i·∏k, the flattened input and kernel; ``boft_s`` holds s as
(o, 1) for a Linear and (1, o) for a convolution. Stage t regroups the inputs as ops/butterfly.py says: the
order within a block is PEFT's, not that of LyCORIS. There is no alpha and no constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.butterfly import merge_stages, turn
from ..ops.dtypes import to_compute
from ..ops.orthogonal import cayley
from ..ops.rows import row_blocks, rows_per_block
from ._base import Core
from ._keys import KeySpec
from ._stored import tensor
from .boft import require_stages
from .oft import require_blocks


@dataclass(frozen=True, eq=False)
class InputBOFT(Core):
    """One layer's BOFT of its inputs. Formula and shapes: this module."""

    algo: ClassVar[str] = "boft_inputs"
    title: ClassVar[str] = "BOFT (PEFT)"
    reference: ClassVar[str] = "https://arxiv.org/abs/2311.06243"
    keys: ClassVar[KeySpec] = KeySpec(required=("boft_R", "boft_s"))
    needs_weight: ClassVar[bool] = True

    blocks: Tensor = tensor("boft_R")
    rescale: Tensor = tensor("boft_s")
    #: Finished rotations that span ``span`` stages each, once they are known; nothing that a file says.
    rotations: Tensor | None = None
    span: int = 1

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["boft_R"].dim() == 4 else ["'boft_R' has not four dimensions"]

    def facts(self) -> dict[str, float]:
        return {"block size": self.blocks.shape[-1]}

    def check(self) -> None:
        require_blocks("boft_R", self.blocks)
        if len(self.blocks) > 1:  # blocks of a single stage may be of odd size
            require_stages("boft_R", self.blocks)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.rescale.numel(), self.blocks.shape[1] * self.blocks.shape[2]

    def _rotations(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        blocks = to_compute(self.blocks, device, dtype)
        return cayley((blocks.mT - blocks) / 2)

    def prepare(self, base_weight: Callable[[], Tensor]) -> InputBOFT:
        # Solved in float64, kept in float32.
        rotations, span = merge_stages(self._rotations(self.blocks.device, torch.float64))
        return replace(self, rotations=rotations.float(), span=span)

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> InputBOFT:
        rescale = to_compute(self.rescale, device, dtype).reshape(-1, 1)
        if self.rotations is None:
            return replace(self, rescale=rescale, rotations=self._rotations(device, dtype))
        return replace(self, rescale=rescale, rotations=to_compute(self.rotations, device, dtype))

    def _turned(self, rows: Tensor, start: int) -> Tensor:
        """W' for ``rows`` of whole inputs, the ones from ``start`` on."""
        assert self.rotations is not None  # a ready form has it
        turned = turn(rows.T, self.rotations, len(self.blocks), self.span).T
        return turned * self.rescale[start : start + rows.shape[0]]

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        matrix = weight.reshape(weight.shape[0], -1)
        return (self._turned(matrix, 0) - matrix).reshape(weight.shape)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        count, columns = rows.shape
        for first, last in row_blocks(count, rows_per_block(columns, rows.dtype, rows.device)):
            own = base[first:last]
            rows[first:last].add_(self._turned(own, start + first).sub_(own), alpha=multiplier)
