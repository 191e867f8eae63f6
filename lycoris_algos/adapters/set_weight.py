"""``set_weight`` and ``set_bias``: the trained parameter itself instead of a change of it.

    W' = W + m·(stored − W)          b' = b + m·(stored − b)

BFL's Flux adapters store the scales of norms as ``set_weight``; ComfyUI copies the stored tensor whatever the
strength is, here the multiplier means the same as everywhere else. PEFT stores whole parameters under the
model's own names (network/load.py); ``set_bias`` is this pack's name for its biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..structures import Dense, RowScaling, Sum
from ._base import FLOAT, Base, Shape
from ._keys import KeySpec
from ._stored import tensor
from ._whole import WholeTensor


@dataclass(frozen=True, eq=False)
class _Replacement(WholeTensor, register=False):
    """The new value of a parameter, in its shape."""

    title: ClassVar[str] = "replaced"
    needs_weight: ClassVar[bool] = True

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Sum:
        minus_one = torch.full((self.matrix_shape[0],), -1.0, dtype=dtype, device=self.change.device)
        return Sum((RowScaling(minus_one), Dense(self.change.reshape(self.matrix_shape))))


@dataclass(frozen=True, eq=False)
class SetWeight(_Replacement):
    """``set_weight``: the new value of a weight."""

    algo: ClassVar[str] = "set"
    reference: ClassVar[str] = "https://huggingface.co/black-forest-labs/FLUX.1-Depth-dev-lora"
    keys: ClassVar[KeySpec] = KeySpec(required=("set_weight",))
    target: ClassVar[str] = "weight"

    change: Tensor = tensor("set_weight")


@dataclass(frozen=True, eq=False)
class SetBias(_Replacement):
    """``set_bias``: the new value of a bias, (o,)."""

    algo: ClassVar[str] = "set_bias"
    reference: ClassVar[str] = "https://huggingface.co/docs/peft/developer_guides/checkpoint"
    keys: ClassVar[KeySpec] = KeySpec(required=("set_bias",))
    target: ClassVar[str] = "bias"

    change: Tensor = tensor("set_bias")
