"""Merge methods that compare the first adapter with the others: without them, or what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._registry import Kind, method

_TINY = 1e-300


@method("subtract", Kind.WEIGHTS, "The first, less all others.", at_least=2)
def subtract(weights: Sequence[float], present: Sequence[int]) -> list[float]:
    """D = w₁D₁ − Σ wᵢDᵢ over the others."""
    return [weights[index] if index == 0 else -weights[index] for index in present]


@method("common part", Kind.GRAM, "What the first has in common with the others.", at_least=2)
def common_part(weights: Sequence[float], present: Sequence[int], gram: Tensor) -> list[float]:
    """What of w₁D₁ lies in the span of the others: least squares, so the rest is at right angles to each."""
    others = gram.cpu()[1:, 1:]
    if present[0] != 0 or not others.numel():  # one of them is not there, so they share nothing
        return [0.0] * len(present)
    norms = others.diagonal().clamp_min(0).sqrt().clamp_min(_TINY)
    scaled = others / (norms[:, None] * norms)
    wanted = gram.cpu()[1:, 0] / norms * weights[0]
    shares = torch.linalg.pinv(scaled, rtol=1e-12, hermitian=True) @ wanted / norms
    return [0.0, *shares.tolist()]


@method("project off", Kind.GRAM, "The first, without what it has in common with the others.", at_least=2)
def project_off(weights: Sequence[float], present: Sequence[int], gram: Tensor) -> list[float]:
    """What of w₁D₁ is at right angles to each of the others; nothing where the first lacks the layer."""
    if present[0] != 0:
        return [0.0] * len(present)
    return [weights[0], *(-c for c in common_part(weights, present, gram)[1:])]
