"""Merge methods that drop elements of every delta before they add (TIES, DARE, DELLA …).

Random masks come from a CPU generator seeded by (seed, layer, adapter), so they are the same on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._registry import Kind, method

# A probability of 0 would divide by 0 what is never kept.
_LEAST = 1e-6


@method(
    "ties",
    Kind.ELEMENTWISE,
    "Keeps the largest elements of each, lets the signs vote, averages those that agree.",
    reference="arXiv 2306.01708",
)
def ties(deltas: Sequence[Tensor], weights: Sequence[float], *, density: float) -> Tensor:
    """Of each Dᵢ its largest elements, ``density`` of all; then ``elect``."""
    return elect([keep_largest(delta, density) for delta in deltas], weights)


@method(
    "dare",
    Kind.ELEMENTWISE,
    "Drops elements at random, makes up for it, and adds.",
    reference="arXiv 2311.03099",
)
def dare(
    deltas: Sequence[Tensor], weights: Sequence[float], *, density: float, seed: int, layer: str
) -> Tensor:
    """Each element is kept with probability ``density``, and divided by it; then Σ wᵢDᵢ."""
    thinned = [
        torch.where(uniform(delta, seed, layer, index) < density, delta / density, 0)
        for index, delta in enumerate(deltas)
    ]
    return _sum(thinned, weights)


@method(
    "della",
    Kind.ELEMENTWISE,
    "Drops small elements more often than large ones, then as ties.",
    reference="arXiv 2406.11617",
)
def della(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: float,
    epsilon: float,
    seed: int,
    layer: str,
) -> Tensor:
    """Each element is kept with a probability of its own, and divided by it; then ``elect``.

    Within each row the probability rises linearly with the rank by size, from density − ε/2 to density + ε/2.
    """
    thinned = []
    for index, delta in enumerate(deltas):
        order = delta.abs().argsort(dim=1, stable=True).argsort(dim=1).to(delta.dtype)
        position = order / max(1, delta.shape[1] - 1)
        keep = (density - epsilon / 2 + epsilon * position).clamp(_LEAST, 1.0)
        drawn = uniform(delta, seed, layer, index) < keep
        thinned.append(torch.where(drawn, delta / keep, 0))
    return elect(thinned, weights)


@method(
    "breadcrumbs",
    Kind.ELEMENTWISE,
    "Drops the very largest and the small elements, and adds.",
    reference="arXiv 2312.06795",
)
def breadcrumbs(
    deltas: Sequence[Tensor], weights: Sequence[float], *, density: float, gamma: float
) -> Tensor:
    """Σ wᵢDᵢ of each Dᵢ without its ⌊γ·n⌋ largest elements and its ⌊(1 − density − γ)·n⌋ smallest ones."""
    kept = []
    for delta in deltas:
        sizes = delta.abs()
        count = delta.numel()
        top, bottom = int(gamma * count), max(0, int((1 - density - gamma) * count))
        flat = sizes.flatten()
        low = flat.kthvalue(bottom + 1).values if bottom < count else flat.max()
        high = flat.kthvalue(max(1, count - top)).values
        kept.append(torch.where((sizes >= low) & (sizes <= high), delta, 0))
    return _sum(kept, weights)


@method("magnitude prune", Kind.ELEMENTWISE, "Keeps the largest elements, and adds.")
def magnitude_prune(deltas: Sequence[Tensor], weights: Sequence[float], *, density: float) -> Tensor:
    """Σ wᵢ·(the largest ``density`` of Dᵢ), without making up for what is dropped (as PEFT does)."""
    return _sum([keep_largest(delta, density) for delta in deltas], weights)


# ---- what they are made of ------------------------------------------------------------------------------


def keep_largest(delta: Tensor, density: float) -> Tensor:
    """``delta`` with all but its ⌈density·n⌉ largest elements (by size) set to 0."""
    count = delta.numel()
    dropped = count - max(1, math.ceil(density * count - 1e-9))
    if dropped <= 0:
        return delta
    sizes = delta.abs()
    limit = sizes.flatten().kthvalue(dropped).values
    kept = torch.where(sizes > limit, delta, 0)
    return kept if bool(kept.any()) else torch.where(sizes >= limit, delta, 0)


def elect(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The disjoint mean of TIES: per element, the sign of Σ wᵢDᵢ wins, and those who have it are averaged.

    D = Σ wᵢDᵢ / Σ|wᵢ| over the i with sign(wᵢDᵢ) = sign(Σ wⱼDⱼ); elements that are 0 do not count.
    """
    total = sum(d * w for d, w in zip(deltas, weights, strict=True))
    sign = torch.sign(torch.as_tensor(total))
    summed, weight = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, w in zip(deltas, weights, strict=True):
        agrees = (torch.sign(delta) * math.copysign(1.0, w) == sign) & (sign != 0)
        summed += torch.where(agrees, delta * w, 0)
        weight += agrees * abs(w)
    return torch.where(weight > 0, summed / weight.clamp_min(torch.finfo(weight.dtype).tiny), 0)


def uniform(like: Tensor, seed: int, layer: str, index: int) -> Tensor:
    """Uniform random numbers in [0, 1) of the shape of ``like``, on its device.

    Drawn on the CPU from (seed, layer, index) alone, so that they are bit for bit the same everywhere.
    """
    digest = hashlib.sha256(f"{seed}\0{layer}\0{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(tuple(like.shape), generator=generator).to(like.device)


def _sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total += delta * weight
    return total
