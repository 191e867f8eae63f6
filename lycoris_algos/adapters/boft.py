"""BOFT: output channels rotated in blocks, over and over, with a butterfly shuffle between the stages.

    R_t = (I + Q_t)(I − Q_t)⁻¹          W' = s ⊙ (P_Tᵀ·R_T·P_T) … (P_0ᵀ·R_0·P_0)·W

``oft_blocks`` (T, n, b, b) with n·b = o; the four dimensions tell it from Diag-OFT. P_t regroups the rows
at distance 2^t·b/2. ``rescale``, ``alpha`` (a constraint) and its absence are as in oft.py, with one norm
over all stages. The rotation acts as R here, not Rᵀ as in Diag-OFT. At multiplier m the weight is
W + m·(W' − W); LyCORIS interpolates every stage instead, which is a polynomial of degree T in m.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.butterfly import merge_stages, turn
from ..ops.dtypes import to_compute
from ..ops.rows import row_blocks, rows_per_block
from ._base import Component, Core
from ._keys import KeySpec
from ._stored import tensor
from .oft import SkewBlocks, require_blocks, require_rescale

_REFERENCE = "https://arxiv.org/abs/2311.06243"
# Products with fewer columns are slow, even where more do not fit the cache.
_COLUMNS = 64


@dataclass(frozen=True, eq=False)
class Butterfly(Core):
    """Finished rotations (T, n, b, b) of all stages, and the rescaling."""

    algo: ClassVar[str] = "boft_diag"
    title: ClassVar[str] = "BOFT"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("oft_diag",), optional=("rescale",))
    needs_weight: ClassVar[bool] = True

    rotations: Tensor = tensor("oft_diag")
    rescale: Tensor | None = tensor("rescale", optional=True)
    #: Nothing that a file says: how many stages there are (None in a file's form, whose blocks have another
    #: order), and how many of them each rotation spans; see ops/butterfly.py.
    stages: int | None = None
    span: int = 1

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["oft_diag"].dim() == 4 else ["'oft_diag' has not four dimensions"]

    def check(self) -> None:
        if self.stages is None:
            require_stages("oft_diag", self.rotations)
        require_rescale(self.rescale, self.matrix_shape[0])

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return self.rotations.shape[1] * self.rotations.shape[2], None

    @property
    def row_unit(self) -> int:
        return 0

    def prepare(self, base_weight: Callable[[], Tensor]) -> Butterfly:
        """The same in as few stages as are fast. Computed in float64, kept in float32."""
        if self.stages is not None:
            return self
        rotations, span = merge_stages(self._reordered().double())
        return replace(self, rotations=rotations.float(), stages=len(self.rotations), span=span)

    def _reordered(self) -> Tensor:
        """A file's rotations, whose neighbours are rows at a distance, in the order of ops/butterfly.py."""
        count, blocks, size, _ = self.rotations.shape
        paired = self.rotations.reshape(count, blocks, size // 2, 2, size // 2, 2)
        return paired.permute(0, 1, 3, 2, 5, 4).reshape(self.rotations.shape)

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Butterfly:
        rescale = self.rescale
        if rescale is not None:
            rescale = to_compute(rescale, device, dtype).reshape(-1, 1)
        moved = replace(self, rotations=to_compute(self.rotations, device, dtype), rescale=rescale)
        if self.stages is not None:
            return moved
        return replace(moved, rotations=moved._reordered(), stages=len(self.rotations))

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        return self._turned(weight) - weight

    def _turned(self, rows: Tensor) -> Tensor:
        """W' for all rows of any columns, a new tensor."""
        assert self.stages is not None  # a ready form has it
        rows = turn(rows, self.rotations, self.stages, self.span)
        return rows if self.rescale is None else rows * self.rescale

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Columns are independent, so it goes by blocks of columns: each stays in the cache for all stages.
        count, columns = rows.shape
        step = max(_COLUMNS, rows_per_block(count, rows.dtype, rows.device))
        for first, last in row_blocks(columns, step):
            own = base[:, first:last].contiguous()
            rows[:, first:last].add_(self._turned(own).sub_(own), alpha=multiplier)


@dataclass(frozen=True, eq=False)
class BOFT(SkewBlocks):
    """One layer's BOFT. Formula and shapes: this module."""

    algo: ClassVar[str] = "boft"
    title: ClassVar[str] = "BOFT"
    reference: ClassVar[str] = _REFERENCE
    dimensions: ClassVar[int] = 4

    def check(self) -> None:
        super().check()
        require_stages("oft_blocks", self.blocks)

    @property
    def row_unit(self) -> int:
        return 0

    def prepare(self, base_weight: Callable[[], Tensor]) -> Butterfly:
        turned = Butterfly(self.rotations(self.blocks.device, torch.float64), self.rescale)
        return turned.prepare(base_weight)

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Component:
        return Butterfly(self.rotations(device, dtype), self.rescale).ready(shape, device, dtype)


def require_stages(name: str, value: Tensor) -> None:
    """Raises ShapeMismatchError unless ``value`` (T, n, b, b) is a butterfly: b even, n·b/2 reached by T."""
    require_blocks(name, value)
    stages, blocks, size, _ = value.shape
    if size % 2 or (blocks * size) % (2**stages * (size // 2)):
        raise ShapeMismatchError(
            f"'{name}' has the shape {tuple(value.shape)}, but {stages} stages of blocks of {size} "
            f"do not divide {blocks * size} outputs"
        )
