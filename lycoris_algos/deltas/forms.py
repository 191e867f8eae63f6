"""Deltas in their cheapest exact form (two factors where they are known, else dense), and sums of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import LayerAdapter
from ..structures import Dense, LowRank, Structure


def change_of(
    adapter: LayerAdapter,
    shape: Sequence[int],
    device: torch.device,
    *,
    weight: Tensor | None = None,
    by_factors: bool = False,
) -> LowRank | Dense:
    """ΔW of ``adapter`` in float32 on ``device``: as factors where ``by_factors`` says that it has them.

    ``weight`` of ``shape`` is given where ΔW depends on it; then everything is computed in its dtype. The
    result does not depend on a weight any more.
    """
    if by_factors:
        factors = adapter.low_rank(shape if weight is None else weight)
        assert factors is not None  # whoever asks knows the ranks
        up, down = (factor.to(device, torch.float32) for factor in factors)
        return LowRank(up, down)
    if weight is not None:
        delta = adapter.delta(weight)
    else:
        delta = adapter.structure(shape).cast(device, torch.float32).delta()
    return Dense(delta.to(device, torch.float32).reshape(delta.shape[0], -1))


def factors_of(change: Structure) -> tuple[Tensor, Tensor]:
    """Two factors of ``change``, which does not depend on W: its own, or the identity and all of it."""
    if isinstance(change, LowRank):
        return change.factors()
    matrix = change.delta()
    return torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device), matrix


def weighted_sum(changes: Sequence[LowRank | Dense], coefficients: Sequence[float]) -> LowRank | Dense:
    """Σ cᵢ·Dᵢ: factors side by side where all that count are factors."""
    used = [(change, c) for change, c in zip(changes, coefficients, strict=True) if c != 0.0]
    pairs = [(change.factors(), c) for change, c in used if isinstance(change, LowRank)]
    if used and len(pairs) == len(used):
        up = torch.cat([up * c for (up, _), c in pairs], dim=1)
        return LowRank(up, torch.cat([down for (_, down), _ in pairs]))
    like = changes[0].delta()
    total = torch.zeros_like(like)
    for change, c in used:
        total.add_(like if change is changes[0] else change.delta(), alpha=c)
    return Dense(total)


def gram(changes: Sequence[Structure]) -> Tensor:
    """(n, n) float64: the inner products of all pairs."""
    products = torch.zeros((len(changes), len(changes)), dtype=torch.float64)
    for i, first in enumerate(changes):
        for j in range(i, len(changes)):
            products[i, j] = products[j, i] = first.inner_product(changes[j])
    return products
