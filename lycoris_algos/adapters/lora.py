"""LoRA, and LoCon, its form for convolutions.

    ΔW = α/r · up·down              up (o, r), down (r, i·∏k)
    ΔW[p, q, k…] = α/r · Σ_ab up[p, a]·mid[a, b, k…]·down[b, q]     with a Tucker kernel mid (r, r, k…)

Stored shapes: up (o, r) or (o, r, 1…), down (r, i), (r, i, k…) or, with mid, (r, i, 1…); i is the number of
input channels of one group. DyLoRA of kohya's kind and extracted LoCon are stored the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.dtypes import times, to_compute
from ..ops.lowrank import best_factors
from ..ops.products import addmm_rows_
from ..ops.tucker import absorb_input
from ._base import Core, scale
from ._keys import KeySpec
from ._stored import number, require_equal, require_matrix, row_numel, tensor


@dataclass(frozen=True, eq=False)
class LoRA(Core):
    """One layer's LoRA. Formula and shapes: this module."""

    algo: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    reference: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("lora_up.weight", "lora_down.weight"), optional=("lora_mid.weight", "alpha", "scale")
    )
    linear: ClassVar[bool] = True

    up: Tensor = tensor("lora_up.weight")
    down: Tensor = tensor("lora_down.weight")
    mid: Tensor | None = tensor("lora_mid.weight", optional=True)
    alpha: float | None = number("alpha")
    fixed_scale: float | None = number("scale")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def check(self) -> None:
        for name, value in self.tensors():
            require_matrix(name, value)
        ranks = {"lora_up.weight": row_numel(self.up), "lora_down.weight": self.down.shape[0]}
        if self.mid is not None:
            ranks["lora_mid.weight"] = self.mid.shape[0]
            ranks["lora_mid.weight (second axis)"] = self.mid.shape[1]
        require_equal("rank", ranks)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        kernel = 1 if self.mid is None else math.prod(self.mid.shape[2:])
        return self.up.shape[0], row_numel(self.down) * kernel

    @property
    def weight_shape(self) -> tuple[int, ...]:
        kernel = () if self.mid is None else self.mid.shape[2:]
        inputs = self.down.shape[1:] if self.mid is None else self.down.shape[1:2]
        return (self.up.shape[0], *inputs, *kernel)

    @property
    def exact_rank(self) -> int:
        return self.rank

    @classmethod
    def of(cls, up: Tensor, down: Tensor, shape: Sequence[int] | None = None) -> LoRA:
        """The LoRA with ΔW = up (o, r)·down (r, i·∏k), stored as files of a weight of ``shape`` hold it."""
        if shape is not None and len(shape) > 2:
            up = up.reshape(*up.shape, *(1 for _ in shape[2:]))
            down = down.reshape(-1, *shape[1:])
        return cls(up.contiguous(), down.contiguous(), None, float(down.shape[0]))

    def multiplied(self, factor: float) -> LoRA:
        return replace(self, up=times(self.up, factor))

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> LoRA:
        up = to_compute(self.up, device, dtype).flatten(1)
        down = to_compute(self.down, device, dtype).flatten(1)
        if self.mid is not None:
            down = absorb_input(to_compute(self.mid, device, dtype), down)
        return LoRA(up, down, None, self.alpha, self.fixed_scale)

    def best(self, rank: int) -> LoRA:
        """The best approximation by singular value with ``rank`` ranks, at the same scale."""
        kernel = self.down.shape[1:] if self.mid is None else (self.down.shape[1], *self.mid.shape[2:])
        plain = self.ready((), self.up.device, torch.float32)
        up, down = best_factors(plain.up, plain.down, rank)
        alpha = None if self.alpha is None else self.alpha * down.shape[0] / self.rank
        up = up.reshape(*up.shape, *self.up.shape[2:])
        return LoRA(up, down.reshape(-1, *kernel), None, alpha, self.fixed_scale)

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        return (self.up * scale(self.alpha, self.rank, self.fixed_scale)) @ self.down

    def ready_low_rank(self, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.up * scale(self.alpha, self.rank, self.fixed_scale), self.down

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        up = self.up[start : start + rows.shape[0]]
        addmm_rows_(rows, up, self.down, multiplier * scale(self.alpha, self.rank, self.fixed_scale))
