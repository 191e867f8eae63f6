"""LoRA and LoCon: (down, up, mid)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..._types import Factor
from ._stored import delta, forward, started, stored, with_output

_SUFFIXES = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")


def weight_gen(org_weight: Tensor, rank: int = 4, tucker: bool = True) -> tuple[Tensor | None, ...]:
    """(down, up, mid or None) that training of ``org_weight`` starts from; mid for kernels."""
    return started("lora", _SUFFIXES, org_weight, lora_dim=rank, use_tucker=tucker)


def diff_weight(*weights: Tensor | None, gamma: Factor = 1.0, backend: str | None = None) -> Tensor:
    """``gamma``·ΔW of (down, up, mid). ``backend`` is there for LyCORIS' sake."""
    lora = stored("lora", _SUFFIXES, weights)
    return delta(lora, lora.weight_shape or (), gamma=gamma)


def bypass_forward_diff(
    x: Tensor,
    *given: Any,
    gamma: Factor = 1.0,
    extra_args: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> Tensor:
    """``gamma``·ΔW on ``x``. ``given``: the layer's output (not needed), then (down, up, mid).

    ``extra_args`` are a convolution's stride, padding and dilation.
    """
    lora = stored("lora", _SUFFIXES, with_output(3, given)[1])
    return forward(lora, x, lora.weight_shape or (), extra_args or {}, gamma=gamma)
