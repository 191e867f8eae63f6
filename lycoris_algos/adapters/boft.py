"""BOFT: output channels rotated in blocks, over and over, with a butterfly shuffle between the stages.

    R_t = (I + Q_t)(I − Q_t)⁻¹          W' = s ⊙ (P_Tᵀ·R_T·P_T) … (P_0ᵀ·R_0·P_0)·W

``oft_blocks`` (T, n, b, b) with n·b = o; the four dimensions tell it from Diag-OFT. P_t regroups the rows
at distance 2^t·b/2. ``rescale``, ``alpha`` (a constraint) and its absence are as in oft.py, with one norm
over all stages. The rotation acts as R here, not Rᵀ as in Diag-OFT. At multiplier m the weight is
W + m·(W' − W); LyCORIS interpolates every stage instead, which is a polynomial of degree T in m.

Blocks of one stage are small, so going through them stage by stage spends its time on regrouping rows. But
s stages in a row mix no more than 2^(s−1)·b rows: ``prepare`` multiplies them out to one stage of blocks of
that size, which costs as many operations (s = 2) or a few more, and moves the weight s times less often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import to_compute
from ..ops.rows import row_blocks, rows_per_block
from ._base import Component, Core, IndirectCore
from ._keys import KeySpec
from ._stored import number, tensor
from .oft import cayley_rotation, require_blocks, require_rescale

_REFERENCE = "https://arxiv.org/abs/2311.06243"


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
    #: Nothing that a file says: how many stages there are, None in a file's form, and how many of them each
    #: rotation spans. Its rows are ordered as in ``_gathered``; in a file, rows at a distance are neighbours.
    stages: int | None = None
    span: int = 1

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["oft_diag"].dim() == 4 else ["'oft_diag' has not four dimensions"]

    @property
    def rank(self) -> None:
        return None

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
        return self.merged()

    def merged(self) -> Butterfly:
        """The same with as many stages in one as blocks of ``_MERGED`` rows can span, but two at least.

        Computed in float64, kept in float32.
        """
        if self.stages is not None:
            return self
        count, blocks, size, _ = self.rotations.shape
        single = self._reordered().double()
        span = min(count, max(2, (_MERGED // size).bit_length()))
        outputs, wide = blocks * size, size * 2 ** (span - 1)
        # A block of merged stages is what they make of the unit vectors of its rows.
        units = torch.eye(wide, dtype=single.dtype, device=single.device)
        rotations, done = [], 0
        for first in _firsts(count, span):
            turned = _scattered(units.expand(outputs // wide, wide, wide), first, span)
            for stage in range(done, first + span):
                turned = _stage(turned, single[stage], stage, 1)
            rotations.append(_gathered(turned, wide, first, span))
            done = first + span
        return replace(self, rotations=torch.stack(rotations).float(), stages=count, span=span)

    def _reordered(self) -> Tensor:
        """A file's rotations, rows and columns in the order of ``_gathered``."""
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
        for rotation, first in zip(self.rotations, _firsts(self.stages, self.span), strict=True):
            rows = _stage(rows, rotation, first, self.span)
        return rows if self.rescale is None else rows * self.rescale

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        # Columns are independent, so it goes by blocks of columns: each stays in the cache for all stages.
        count, columns = rows.shape
        for first, last in row_blocks(columns, rows_per_block(count, rows.dtype, rows.device)):
            own = base[:, first:last].contiguous()
            rows[:, first:last].add_(self._turned(own).sub_(own), alpha=multiplier)


# Rows of a block of merged stages. Larger ones take more operations, smaller ones more passes.
_MERGED = 128


def _firsts(stages: int, span: int) -> list[int]:
    """The stage that each rotation over ``span`` of them begins with; the last one may begin earlier."""
    return [min(first, stages - span) for first in range(0, stages, span)]


def _stage(rows: Tensor, rotation: Tensor, first: int, span: int) -> Tensor:
    """``rows`` (o, c) turned by ``rotation`` (n, b, b) of the ``span`` stages from ``first`` on."""
    turned = torch.bmm(rotation, _gathered(rows, rotation.shape[1], first, span))
    return _scattered(turned, first, span)


def _gathered(rows: Tensor, size: int, first: int, span: int) -> Tensor:
    """(n, size, c) of ``rows`` (o, c): the rows that ``span`` stages from ``first`` on mix, in blocks.

    A stage t mixes rows 2^t·half apart, and ``half`` neighbours.
    """
    half = size // 2**span
    apart = rows.reshape(-1, 2**span, 2**first, half, rows.shape[1])
    return apart.transpose(1, 2).reshape(-1, size, rows.shape[1])


def _scattered(blocks: Tensor, first: int, span: int) -> Tensor:
    """(o, c): the inverse of ``_gathered``."""
    _, size, columns = blocks.shape
    together = blocks.reshape(-1, 2**first, 2**span, size // 2**span, columns)
    return together.transpose(1, 2).reshape(-1, columns)


@dataclass(frozen=True, eq=False)
class BOFT(IndirectCore):
    """One layer's BOFT. Formula and shapes: this module."""

    algo: ClassVar[str] = "boft"
    title: ClassVar[str] = "BOFT"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("oft_blocks",), optional=("rescale", "alpha"))
    needs_weight: ClassVar[bool] = True

    blocks: Tensor = tensor("oft_blocks")
    rescale: Tensor | None = tensor("rescale", optional=True)
    alpha: float | None = number("alpha")

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["oft_blocks"].dim() == 4 else ["'oft_blocks' has not four dimensions"]

    @property
    def rank(self) -> None:
        return None

    def facts(self) -> dict[str, float]:
        constraint = {"constraint": self.alpha} if self.alpha else {}
        return {"block size": self.blocks.shape[-1], **constraint}

    def check(self) -> None:
        require_stages("oft_blocks", self.blocks)
        require_rescale(self.rescale, self.matrix_shape[0])

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return self.blocks.shape[1] * self.blocks.shape[2], None

    @property
    def row_unit(self) -> int:
        return 0

    def _rotations(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return cayley_rotation(to_compute(self.blocks, device, dtype), self.alpha, self.matrix_shape[0])

    def prepare(self, base_weight: Callable[[], Tensor]) -> Butterfly:
        return Butterfly(self._rotations(self.blocks.device, torch.float64), self.rescale).merged()

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Component:
        return Butterfly(self._rotations(device, dtype), self.rescale).ready(shape, device, dtype)


def require_stages(name: str, value: Tensor) -> None:
    """Raises ShapeMismatchError unless ``value`` (T, n, b, b) is a butterfly: b even, n·b/2 reached by T."""
    require_blocks(name, value)
    stages, blocks, size, _ = value.shape
    if size % 2 or (blocks * size) % (2**stages * (size // 2)):
        raise ShapeMismatchError(
            f"'{name}' has the shape {tuple(value.shape)}, but {stages} stages of blocks of {size} "
            f"do not divide {blocks * size} outputs"
        )
