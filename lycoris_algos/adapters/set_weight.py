"""``set_weight``: the trained parameter itself instead of a change of it.

    W' = W + m·(stored − W)

BFL's Flux adapters store the scales of norms this way. ComfyUI copies the stored tensor whatever the
strength is; here the multiplier means the same as everywhere else.
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
class SetWeight(WholeTensor):
    """``set_weight``: the new value of a parameter, in its shape."""

    algo: ClassVar[str] = "set"
    title: ClassVar[str] = "replaced"
    reference: ClassVar[str] = "https://huggingface.co/black-forest-labs/FLUX.1-Depth-dev-lora"
    keys: ClassVar[KeySpec] = KeySpec(required=("set_weight",))
    target: ClassVar[str] = "weight"
    needs_weight: ClassVar[bool] = True

    change: Tensor = tensor("set_weight")

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Sum:
        minus_one = torch.full((self.matrix_shape[0],), -1.0, dtype=dtype, device=self.change.device)
        return Sum((RowScaling(minus_one), Dense(self.change.reshape(self.matrix_shape))))
