"""``set_weight``: the trained parameter itself instead of a change of it.

    W' = W + m·(stored − W)

BFL's Flux adapters store the scales of norms this way. ComfyUI copies the stored tensor whatever the
strength is; here the multiplier means the same as everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.dtypes import to_compute
from ._dense import DenseDelta
from ._keys import KeySpec
from ._stored import tensor


@dataclass(frozen=True, eq=False)
class SetWeight(DenseDelta):
    """``set_weight``: the new value of a parameter, in its shape."""

    algo: ClassVar[str] = "set"
    title: ClassVar[str] = "replaced"
    reference: ClassVar[str] = "https://huggingface.co/black-forest-labs/FLUX.1-Depth-dev-lora"
    keys: ClassVar[KeySpec] = KeySpec(required=("set_weight",))
    target: ClassVar[str] = "weight"
    needs_weight: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    change: Tensor = tensor("set_weight")

    def multiplied(self, factor: float) -> None:
        return None  # what is stored is the new weight, not a change of it

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> SetWeight:
        return replace(self, change=to_compute(self.change, device, dtype).reshape(self.matrix_shape))

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        return self.change - weight

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        own = self.change[start : start + rows.shape[0]]
        if base is rows:
            rows.lerp_(own, multiplier)
        else:
            rows.add_(own - base, alpha=multiplier)
