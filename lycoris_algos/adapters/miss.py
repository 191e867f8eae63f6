"""MiSS (PEFT; once called Bone): one small block, repeated over all inputs of a Linear.

    ΔW[o, n·r + k] = block[k, o]              ``miss_block`` (r, o), i of any size
    ΔW[o, n·r + k] = block[k, o mod m]        "mini": ``miss_block`` (r, m), m a divisor of o
    ΔW[I, J] = W[I, J]·block[I] + block[I]    "bat": ``miss_block`` (o/r, r, r), W in blocks of r × r

Three dimensions tell the last form. That a smaller block is repeated over the outputs as well stands only in
PEFT's configuration; ``miss_block.mini`` holds it in files that this library writes. There is no alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..errors import ShapeMismatchError
from ..ops.dtypes import times
from ..structures import BlockProduct, Dense, Kronecker, LowRank, Sum
from ._base import FLOAT, Algorithm, Base, Shape
from ._keys import KeySpec
from ._stored import number, require_matrix, tensor
from ._trained import PeftReading, PeftSettings

_REFERENCE = "https://arxiv.org/abs/2409.15371"


@dataclass(frozen=True, eq=False)
class MiSS(Algorithm):
    """One layer's repeated block. Formula and shapes: this module."""

    algo: ClassVar[str] = "miss"
    title: ClassVar[str] = "MiSS"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("miss_block",), optional=("miss_block.mini",))

    block: Tensor = tensor("miss_block")
    mini: float | None = number("miss_block.mini")

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["miss_block"].dim() == 2 else ["'miss_block' has not two dimensions"]

    def check(self) -> None:
        require_matrix("miss_block", self.block)

    @property
    def matrix_shape(self) -> tuple[int | None, None]:
        return (None if self.mini else self.block.shape[1]), None

    def fits(self, shape: Sequence[int]) -> None:
        super().fits(shape)
        if len(shape) != 2 or shape[0] % self.block.shape[1] or shape[1] < self.block.shape[0]:
            raise ShapeMismatchError(
                f"MiSS repeats a block of {self.block.shape[1]} outputs and {self.block.shape[0]} inputs "
                f"over the weight of a Linear, but the weight is {'×'.join(map(str, shape))}"
            )

    @property
    def exact_rank(self) -> int:
        return min(self.block.shape)

    def facts(self) -> dict[str, float]:
        return {"block": self.block.shape[0]}

    def multiplied(self, factor: Factor) -> MiSS:
        return replace(self, block=times(self.block, factor))

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Kronecker | LowRank:
        return _repeated(self.block.T, *shape)

    def from_peft(self, settings: PeftSettings) -> PeftReading:
        if self.mini or not settings.is_of("MISS") or settings["init_weights"] != "mini":
            return PeftReading(self)
        return PeftReading(replace(self, mini=1.0), "MiSS whose block PEFT repeats over the outputs too")

    def to_peft(self) -> MiSS | None:
        return None if self.mini else self


@dataclass(frozen=True, eq=False)
class MiSSBat(Algorithm):
    """One layer's blocks of the form "bat". Formula and shapes: this module."""

    algo: ClassVar[str] = "miss_bat"
    title: ClassVar[str] = "MiSS (bat)"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("miss_block",))
    needs_weight: ClassVar[bool] = True

    blocks: Tensor = tensor("miss_block")

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        return [] if tensors["miss_block"].dim() == 3 else ["'miss_block' has not three dimensions"]

    def check(self) -> None:
        if self.blocks.shape[1] != self.blocks.shape[2] or not self.blocks.numel():
            raise ShapeMismatchError(
                f"'miss_block' has the shape {tuple(self.blocks.shape)}: no square blocks"
            )

    @property
    def matrix_shape(self) -> tuple[int, None]:
        return self.blocks.shape[0] * self.blocks.shape[1], None

    def fits(self, shape: Sequence[int]) -> None:
        super().fits(shape)
        if len(shape) != 2 or shape[1] % self.blocks.shape[1]:
            raise ShapeMismatchError(
                f"MiSS changes the weight of a Linear in blocks of {self.blocks.shape[1]} inputs, "
                f"but the weight is {'×'.join(map(str, shape))}"
            )

    def facts(self) -> dict[str, float]:
        return {"block": self.blocks.shape[1]}

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Sum:
        return Sum((BlockProduct(self.blocks), _repeated(self.blocks.flatten(0, 1), *shape)))


def _repeated(block: Tensor, outputs: int, inputs: int) -> Kronecker | LowRank:
    """``block`` (m, r) below itself to ``outputs`` rows, beside itself to ``inputs`` columns, cut there."""
    height, width = block.shape
    down, across = outputs // height, -(-inputs // width)
    if across * width == inputs:
        return Kronecker(LowRank(block.new_ones((down, 1)), block.new_ones((1, across))), Dense(block))
    same = torch.eye(min(height, width), dtype=block.dtype, device=block.device)
    left, right = (same, block) if height < width else (block, same)
    return LowRank(left.repeat(down, 1), right.repeat(1, across)[:, :inputs])
