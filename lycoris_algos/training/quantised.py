"""Base layers whose weight is not stored as plain numbers: fp8 with a scale, torchao, bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_fp8_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer of fp8 numbers and a scale, by what it has: several programs write one."""
    parts = ("in_features", "out_features", "weight", "weight_scale")
    return type(module).__name__ == "Fp8Linear" and all(hasattr(module, part) for part in parts)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, however its weight is stored."""
    return isinstance(module, nn.Linear) or is_fp8_linear(module)


def is_quantised(module: nn.Module) -> bool:
    """Whether its weight is not plain numbers, so that nothing can be merged into it."""
    weight = getattr(module, "weight", None)
    if is_fp8_linear(module) or not isinstance(weight, Tensor):
        return True
    return not weight.is_floating_point() or weight.element_size() == 1 or _is_torchao(weight)


def dequantised(module: Any, dtype: torch.dtype) -> Tensor:
    """The weight of a quantised ``module`` as plain numbers of ``dtype``, without a gradient.

    A layer whose form is not known here is asked what it does to each input, which is its weight too.
    """
    weight: Tensor = module.weight
    with torch.no_grad():
        scale = getattr(module, "weight_scale", None)
        if isinstance(weight, Tensor) and weight.is_floating_point() and not _is_torchao(weight):
            wide = weight.to(dtype)
            if not isinstance(scale, Tensor):
                return wide
            return wide * (scale[:, None] if scale.dim() == 1 else scale).to(wide)
        if isinstance(weight, Tensor) and _is_torchao(weight):
            return weight.dequantize().to(dtype)
        inputs = torch.eye(module.in_features, dtype=dtype, device=weight.device)
        outputs: Tensor = type(module).forward(module, inputs)
        bias: Tensor | None = getattr(module, "bias", None)
        return (outputs if bias is None else outputs - bias).to(dtype).T


def _is_torchao(weight: Tensor) -> bool:
    return type(weight).__module__.startswith("torchao")
