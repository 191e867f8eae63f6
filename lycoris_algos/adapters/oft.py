"""Diag-OFT: the output channels are rotated in blocks.

    Q = B − Bᵀ          R = (I + Q)(I − Q)⁻¹
    W'[n·b + m, …] = s[n·b + m] · Σ_k R[n, k, m]·W[n·b + k, …]

``oft_blocks`` holds B (n, b, b) with n·b = o, ``rescale`` the optional s (o, 1…) or (o,). ``alpha`` is no
scale here but a constraint: if it is not 0, Q is shrunk so that its norm over all blocks is at most alpha·o.
LyCORIS 2.0 stored the finished R, with s in its columns, as ``oft_diag``.

kohya's OFT has the same keys and maths. Its Flux version splits the rows of fused projections and stores
``oft_blocks.0``, ``.1`` …, each on its own rows and with its own constraint alpha·rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.divisors import factorization
from ..ops.dtypes import solving
from ..ops.orthogonal import cayley, skew_from_blocks
from ..ops.starting import ones, zeros
from ..structures import RowRotation, RowStack
from ._base import FLOAT, Algorithm, Base, Shape
from ._keys import KeySpec
from ._stored import number, tensor
from ._trained import TrainingFacts

# kohya stores 0 for "no rotation at all" where LyCORIS stores it for "no constraint". A constraint that is
# this small leaves no rotation either, in every loader.
_NO_ROTATION = 1e-12
_REFERENCE = "https://arxiv.org/abs/2306.07280"


@dataclass(frozen=True, eq=False)
class DiagRotation(Algorithm):
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

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> RowRotation:
        return _row_rotation(self.rotation.to(dtype), dtype)


@dataclass(frozen=True, eq=False)
class SkewBlocks(Algorithm, register=False):
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
        dimensions = tensors["oft_blocks"].dim()
        if dimensions == cls.dimensions:
            return []
        return [f"'oft_blocks' has {dimensions} dimensions, not {cls.dimensions}"]

    def facts(self) -> dict[str, float]:
        constraint = {"constraint": self.alpha} if self.alpha else {}
        return {"block size": self.blocks.shape[-1], **constraint}

    def check(self) -> None:
        require_blocks("oft_blocks", self.blocks, self.dimensions)
        require_rescale(self.rescale, self.matrix_shape[0])

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return self.blocks.shape[-3] * self.blocks.shape[-2], None

    def rotations(self) -> Tensor:
        """The rotations of ``blocks`` in float64, without the rescaling."""
        return _solved(self.blocks, self.alpha, self.matrix_shape[0])

    def as_trained(self, name: str, facts: TrainingFacts) -> Iterator[tuple[SkewBlocks, str]]:
        if _turns_nothing(self.alpha, facts):
            yield replace(self, alpha=_NO_ROTATION), _KOHYA_NOTE


@dataclass(frozen=True, eq=False)
class DiagOFT(SkewBlocks):
    """One layer's Diag-OFT. Formula and shapes: this module."""

    algo: ClassVar[str] = "oft"
    title: ClassVar[str] = "Diag-OFT"
    reference: ClassVar[str] = _REFERENCE
    dimensions: ClassVar[int] = 3
    trained_as: ClassVar[tuple[str, ...]] = ("diag-oft", "oft")

    @classmethod
    def begin(
        cls, weight: Tensor, *, lora_dim: int = 4, constraint: float = 0.0, rescaled: bool = False
    ) -> DiagOFT:
        """Nothing is turned. Blocks are of ``lora_dim`` rows, or of the nearest size below that divides."""
        size, count = factorization(weight.shape[0], lora_dim)
        rescale = ones(weight, weight.shape[0], *(1 for _ in weight.shape[1:])) if rescaled else None
        return cls(zeros(weight, count, size, size), rescale, float(constraint))

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> RowRotation:
        rotation = self.rotations()
        if self.rescale is not None:
            rotation = rotation * self.rescale.to(rotation.dtype).reshape(rotation.shape[0], 1, -1)
        return _row_rotation(rotation, dtype)


@dataclass(frozen=True, eq=False)
class SplitOFT(Algorithm):
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

    def check(self) -> None:
        for name, value in self.tensors():
            require_blocks(name, value)

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return sum(value.shape[0] * value.shape[1] for _, value in self.tensors()), None

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> RowStack:
        rotations = [
            _solved(value, self.alpha, value.shape[0] * value.shape[1]) for _, value in self.tensors()
        ]
        return RowStack(tuple(_row_rotation(rotation, dtype) for rotation in rotations))

    def as_trained(self, name: str, facts: TrainingFacts) -> Iterator[tuple[SplitOFT, str]]:
        if _turns_nothing(self.alpha, facts):
            yield replace(self, alpha=_NO_ROTATION), _KOHYA_NOTE


_KOHYA_NOTE = "kohya's OFT with alpha 0: its constraint allows no rotation"


def _turns_nothing(alpha: float | None, facts: TrainingFacts) -> bool:
    """alpha 0 is no constraint to LyCORIS; kohya clamps to it, so nothing turns."""
    return facts.module.startswith("networks.oft") and alpha == 0.0


def _solved(blocks: Tensor, alpha: float | None, outputs: int) -> Tensor:
    """R of blocks (…, b, b) in float64, with the constraint ``alpha`` on ``outputs`` rows; 0 is none."""
    return cayley(skew_from_blocks(solving(blocks), alpha * outputs if alpha else None))


def _row_rotation(rotation: Tensor, dtype: torch.dtype) -> RowRotation:
    """R (n, b, b), which acts from its first axis to its second, as a change kept in ``dtype``."""
    identity = torch.eye(rotation.shape[1], dtype=rotation.dtype, device=rotation.device)
    return RowRotation((rotation - identity).mT.to(dtype).contiguous())


def require_blocks(name: str, value: Tensor, dimensions: int = 3) -> None:
    """Raises ShapeMismatchError unless ``value`` is a stack of square matrices, of so many dimensions."""
    if value.dim() != dimensions:
        raise ShapeMismatchError(f"'{name}' has {value.dim()} dimensions, not {dimensions}")
    if value.shape[-1] != value.shape[-2] or value.numel() == 0:
        raise ShapeMismatchError(
            f"'{name}' has the shape {tuple(value.shape)}, but must be a stack of square matrices"
        )


def require_rescale(rescale: Tensor | None, outputs: int | None) -> None:
    """Raises ShapeMismatchError unless ``rescale`` has one number per output."""
    if rescale is not None and rescale.numel() != outputs:
        raise ShapeMismatchError(
            f"'rescale' has {rescale.numel()} numbers, but the layer has {outputs} outputs"
        )
