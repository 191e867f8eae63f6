"""GLoRA: (a1, a2, b1, b2, bm)."""

from __future__ import annotations

from torch import Tensor

from ..._types import Factor
from ._stored import delta, started, stored

_SUFFIXES = ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight")


def weight_gen(org_weight: Tensor, rank: int = 4, tucker: bool = False) -> tuple[Tensor | None, ...]:
    """(a1, a2, b1, b2, bm or None) that training of ``org_weight`` starts from."""
    return started("glora", _SUFFIXES, org_weight, lora_dim=rank, use_tucker=tucker)


def diff_weight(org_weight: Tensor, *weights: Tensor | None, gamma: Factor = 1.0) -> Tensor:
    """``gamma``·ΔW(``org_weight``) of (a1, a2, b1, b2, bm)."""
    glora = stored("glora", _SUFFIXES, weights)
    return delta(glora, org_weight.shape, org_weight, gamma)
