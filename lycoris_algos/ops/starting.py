"""Start values of trained tensors: random ones, on the device of the weight that is trained, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros of ``shape`` beside ``like``."""
    return torch.zeros(shape, device=like.device)


def ones(like: Tensor, *shape: int) -> Tensor:
    """Ones of ``shape`` beside ``like``."""
    return torch.ones(shape, device=like.device)


def normal(like: Tensor, *shape: int, std: float) -> Tensor:
    """Normally distributed numbers of ``shape`` beside ``like``."""
    return torch.randn(shape, device=like.device) * std


def kaiming(like: Tensor, *shape: int) -> Tensor:
    """Numbers as a fresh Linear or convolution of ``shape`` (n, i, k…) has them: uniform up to 1/√(i·∏k)."""
    reach = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape, device=like.device).uniform_(-reach, reach)


def pointwise(weight: Sequence[int]) -> tuple[int, ...]:
    """The kernel of a factor that mixes channels only, of a weight of shape ``weight``: (), (1,), (1, 1) …"""
    return tuple(1 for _ in weight[2:])


def has_kernel(weight: Sequence[int]) -> bool:
    """Whether a weight of shape ``weight`` is a convolution over more than one position."""
    return math.prod(weight[2:]) != 1
