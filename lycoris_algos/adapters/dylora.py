"""DyLoRA while it is trained: a LoRA of which every step trains one block of ranks, for all ranks at once.

A step draws a block n, computes with the ranks up to its end at the scale α/(n + 1), and changes that block
alone. So the first ranks are an adapter of their own, whatever their number. Stored it is a LoRA (lora.py),
whose alpha is block_size times the α that was asked for: the scale with all of its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError
from .lora import LoRA


@dataclass(frozen=True, eq=False)
class DyLoRA(LoRA, register=False):
    """A LoRA whose blocks of ``block_size`` ranks are trained in turn."""

    title: ClassVar[str] = "DyLoRA"
    reference: ClassVar[str] = "https://arxiv.org/abs/2210.07558"
    trained_as: ClassVar[tuple[str, ...]] = ("dylora",)

    block_size: int = 4

    @classmethod
    def begin(  # type: ignore[override]
        cls, weight: Tensor, *, lora_dim: int = 4, alpha: float | None = 1.0, block_size: int = 4
    ) -> DyLoRA:
        """ΔW is 0. Raises BadValueError unless ``lora_dim`` is a multiple of ``block_size``."""
        if block_size < 1 or lora_dim % block_size:
            raise BadValueError(f"DyLoRA's lora_dim {lora_dim} is no multiple of its block_size {block_size}")
        whole = LoRA.begin(weight, lora_dim=lora_dim, alpha=alpha)
        assert whole.alpha is not None
        return cls(whole.up, whole.down, alpha=whole.alpha * block_size, block_size=block_size)

    def drawn(self) -> LoRA:
        """The ranks up to the end of a random block, of which that block is trained."""
        block = int(torch.randint(self.rank // self.block_size, ()))
        first, last = block * self.block_size, (block + 1) * self.block_size
        up = torch.cat((self.up[:, :first].detach(), self.up[:, first:last]), dim=1)
        return replace(self, up=up, down=torch.cat((self.down[:first].detach(), self.down[first:last])))
