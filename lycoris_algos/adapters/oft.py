"""Diag-OFT: the output channels are rotated in blocks.

    Q = B − Bᵀ          R = (I + Q)(I − Q)⁻¹
    W'[n·b + m, …] = s[n·b + m] · Σ_k R[n, k, m]·W[n·b + k, …]

``oft_blocks`` holds B (n, b, b) with n·b = o, ``rescale`` the optional s (o, 1…) or (o,). ``alpha`` is no
scale here but a constraint: if it is not 0, Q is shrunk so that its norm over all blocks is at most alpha·o.
LyCORIS 2.0 stored the finished R, with s in its columns, as ``oft_diag``; that is also what ``prepare`` makes
of the other forms, so that nothing is solved while an image is made.

kohya's OFT has the same keys and maths. Its Flux version splits the rows of fused projections and stores
``oft_blocks.0``, ``.1`` …, each on its own rows and with its own constraint alpha·rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import to_compute
from ..ops.orthogonal import cayley, skew_from_blocks
from ..ops.rows import block_rows, row_blocks
from ..ops.scratch import scratch
from ._base import Component, Core, IndirectCore
from ._keys import KeySpec
from ._stored import number, tensor

_REFERENCE = "https://arxiv.org/abs/2306.07280"


@dataclass(frozen=True, eq=False)
class BlockRotation(Core):
    """Finished rotations R (n, b, b), one per block of rows, with any rescaling in their columns."""

    algo: ClassVar[str] = "oft_diag"
    title: ClassVar[str] = "Diag-OFT"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("oft_diag",))
    needs_weight: ClassVar[bool] = True

    rotation: Tensor = tensor("oft_diag")

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["oft_diag"].dim() == 3 else ["'oft_diag' has not three dimensions"]

    def check(self) -> None:
        require_blocks("oft_diag", self.rotation)

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return self.rotation.shape[0] * self.rotation.shape[1], None

    @property
    def row_unit(self) -> int:
        return self.rotation.shape[1]

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> BlockRotation:
        return replace(self, rotation=to_compute(self.rotation, device, dtype))

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        blocks = weight.reshape(*self.rotation.shape[:2], -1)
        return torch.einsum("nkm,nkc->nmc", self._change(), blocks).reshape(weight.shape)

    def _change(self) -> Tensor:
        size = self.rotation.shape[1]
        return self.rotation - torch.eye(size, dtype=self.rotation.dtype, device=self.rotation.device)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        size, columns = self.rotation.shape[1], rows.shape[1]
        change = self._change().mT[start // size :]
        count = rows.shape[0] // size
        step = block_rows(count, columns * size, rows.dtype, rows.device)
        with scratch((step, size, columns), rows.dtype, rows.device) as buffer:
            for first, last in row_blocks(count, step):
                own = slice(first * size, last * size)
                blocks = base[own].view(last - first, size, columns)
                turned = torch.bmm(change[first:last], blocks, out=buffer[: last - first])
                rows[own].view(turned.shape).add_(turned, alpha=multiplier)


@dataclass(frozen=True, eq=False)
class SkewBlocks(IndirectCore, register=False):
    """What files of OFT and of BOFT store: blocks of rows, a constraint and a rescaling."""

    keys: ClassVar[KeySpec] = KeySpec(required=("oft_blocks",), optional=("rescale", "alpha"))
    needs_weight: ClassVar[bool] = True
    #: How many dimensions ``oft_blocks`` has, which tells one from the other.
    dimensions: ClassVar[int]

    blocks: Tensor = tensor("oft_blocks")
    rescale: Tensor | None = tensor("rescale", optional=True)
    alpha: float | None = number("alpha")

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        found = tensors["oft_blocks"].dim()
        return (
            [] if found == cls.dimensions else [f"'oft_blocks' has {found} dimensions, not {cls.dimensions}"]
        )

    def facts(self) -> dict[str, float]:
        constraint = {"constraint": self.alpha} if self.alpha else {}
        return {"block size": self.blocks.shape[-1], **constraint}

    def check(self) -> None:
        require_blocks("oft_blocks", self.blocks)
        require_rescale(self.rescale, self.matrix_shape[0])

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return self.blocks.shape[-3] * self.blocks.shape[-2], None

    def rotations(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The rotations of ``blocks``, without the rescaling."""
        return cayley_rotation(to_compute(self.blocks, device, dtype), self.alpha, self.matrix_shape[0])


@dataclass(frozen=True, eq=False)
class DiagOFT(SkewBlocks):
    """One layer's Diag-OFT. Formula and shapes: this module."""

    algo: ClassVar[str] = "oft"
    title: ClassVar[str] = "Diag-OFT"
    reference: ClassVar[str] = _REFERENCE
    dimensions: ClassVar[int] = 3

    @property
    def row_unit(self) -> int:
        return self.blocks.shape[1]

    def _rotation(self, device: torch.device, dtype: torch.dtype) -> BlockRotation:
        rotation = self.rotations(device, dtype)
        if self.rescale is not None:
            columns = to_compute(self.rescale, device, dtype).reshape(rotation.shape[0], 1, -1)
            rotation = rotation * columns
        return BlockRotation(rotation)

    def prepare(self, base_weight: Callable[[], Tensor]) -> BlockRotation:
        return _single(self._rotation(self.blocks.device, torch.float64))

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Component:
        return self._rotation(device, dtype)


@dataclass(frozen=True, eq=False)
class SplitOFT(Core):
    """kohya's OFT on the fused projections of Flux: a rotation for each slice of rows."""

    algo: ClassVar[str] = "oft_split"
    title: ClassVar[str] = "OFT (split)"
    reference: ClassVar[str] = "https://github.com/kohya-ss/sd-scripts/blob/main/networks/oft_flux.py"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("oft_blocks.0", "oft_blocks.1"), optional=("oft_blocks.2", "oft_blocks.3", "alpha")
    )
    needs_weight: ClassVar[bool] = True

    first: Tensor = tensor("oft_blocks.0")
    second: Tensor = tensor("oft_blocks.1")
    third: Tensor | None = tensor("oft_blocks.2", optional=True)
    fourth: Tensor | None = tensor("oft_blocks.3", optional=True)
    alpha: float | None = number("alpha")
    #: Whether the tensors above are finished rotations; nothing that a file says.
    finished: bool = False

    def check(self) -> None:
        for name, value in self.tensors():
            require_blocks(name, value)

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return sum(value.shape[0] * value.shape[1] for _, value in self.tensors()), None

    @property
    def row_unit(self) -> int:
        return 0

    def _finish(self, device: torch.device, dtype: torch.dtype) -> SplitOFT:
        def finish(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            moved = to_compute(value, device, dtype)
            rows = value.shape[0] * value.shape[1]
            return moved if self.finished else cayley_rotation(moved, self.alpha, rows)

        first, second = finish(self.first), finish(self.second)
        assert first is not None
        assert second is not None
        return SplitOFT(first, second, finish(self.third), finish(self.fourth), self.alpha, True)

    def prepare(self, base_weight: Callable[[], Tensor]) -> SplitOFT:
        # Solved in float64, kept in float32.
        return self._finish(self.first.device, torch.float64)._finish(self.first.device, torch.float32)

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> SplitOFT:
        return self._finish(device, dtype)

    def _slices(self) -> list[tuple[int, int, BlockRotation]]:
        """(first row, last row, rotation) of every slice of a finished form."""
        found, row = [], 0
        for _, value in self.tensors():
            rows = value.shape[0] * value.shape[1]
            found.append((row, row + rows, BlockRotation(value)))
            row += rows
        return found

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        return torch.cat([part.ready_delta(weight[a:b]) for a, b, part in self._slices()])

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        for first, last, part in self._slices():
            part.add_rows_(rows[first:last], 0, multiplier, base[first:last])


def cayley_rotation(blocks: Tensor, alpha: float | None, outputs: int) -> Tensor:
    """R of blocks (…, b, b) in their dtype, with the constraint ``alpha`` on ``outputs`` rows; 0 is none."""
    return cayley(skew_from_blocks(blocks, alpha * outputs if alpha else None))


def require_blocks(name: str, value: Tensor) -> None:
    """Raises ShapeMismatchError unless ``value`` is a stack of square matrices."""
    if value.dim() < 3 or value.shape[-1] != value.shape[-2] or value.numel() == 0:
        raise ShapeMismatchError(
            f"'{name}' has the shape {tuple(value.shape)}, but must be a stack of square matrices"
        )


def require_rescale(rescale: Tensor | None, outputs: int | None) -> None:
    """Raises ShapeMismatchError unless ``rescale`` has one number per output."""
    if rescale is not None and rescale.numel() != outputs:
        raise ShapeMismatchError(
            f"'rescale' has {rescale.numel()} numbers, but the layer has {outputs} outputs"
        )


def _single(rotation: BlockRotation) -> BlockRotation:
    return BlockRotation(rotation.rotation.float())
