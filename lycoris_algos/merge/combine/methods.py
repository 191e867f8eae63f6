"""The ways to make one change out of several, each a pure function of one layer's deltas.

Notation: Dᵢ (o, i·∏k) is the delta of adapter i at multiplier 1, wᵢ its multiplier, D the result. λ (the
option ``scaling``) multiplies every D at the end, outside of these functions.

Two kinds. A *linear* method is D = Σ cᵢ·Dᵢ with numbers cᵢ that follow from the wᵢ and from the inner
products ⟨Dᵢ, Dⱼ⟩ alone, so that D is never formed where the Dᵢ have factors. An *elementwise* method looks at
every element and needs the Dᵢ dense. KnOTS stands between: it works on the singular vectors.

Random masks come from a CPU generator seeded by (seed, layer, adapter), so they are the same on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor


class Method(str, Enum):
    """By the names that a user chooses from."""

    SUM = "sum"
    AVERAGE = "average"
    TIES = "ties"
    DARE = "dare"
    DELLA = "della"
    BREADCRUMBS = "breadcrumbs"
    MAGNITUDE_PRUNE = "magnitude prune"
    MODEL_STOCK = "model stock"
    SLERP = "slerp"
    KNOTS = "knots"
    SUBTRACT = "subtract"
    COMMON_PART = "common part"
    PROJECT_OFF = "project off"


LINEAR = frozenset(
    {
        Method.SUM,
        Method.AVERAGE,
        Method.MODEL_STOCK,
        Method.SLERP,
        Method.SUBTRACT,
        Method.COMMON_PART,
        Method.PROJECT_OFF,
    }
)
#: Linear methods whose coefficients need the inner products.
NEEDS_GRAM = LINEAR - {Method.SUM, Method.AVERAGE, Method.SUBTRACT}


# ---- linear ---------------------------------------------------------------------------------------------


def coefficients(
    method: Method, weights: Sequence[float], present: Sequence[int], gram: Tensor
) -> list[float]:
    """cᵢ of each adapter that has the layer.

    ``weights`` are those of all adapters, ``present`` the indices of those that have the layer, in order, and
    ``gram`` (n, n) float64 their inner products ⟨Dᵢ, Dⱼ⟩ (unused where ``NEEDS_GRAM`` says so).
    """
    own = [weights[index] for index in present]
    if method is Method.SUM:
        return own
    if method is Method.AVERAGE:
        return average(weights, present)
    if method is Method.SUBTRACT:
        return [w if index == 0 else -w for index, w in zip(present, own, strict=True)]
    if method is Method.MODEL_STOCK:
        return model_stock(own, gram)
    if method is Method.SLERP:  # nothing has no direction, so where one adapter lacks the layer: straight
        return slerp(own, gram) if len(own) == len(weights) else average(weights, present)
    if present[0] != 0:  # the first adapter does not have this layer: nothing of it is there to be divided
        return [0.0] * len(own)
    shared = common_part(own, gram)
    if method is Method.COMMON_PART:
        return shared
    return [own[0], *(-c for c in shared[1:])]


def average(weights: Sequence[float], present: Sequence[int]) -> list[float]:
    """wᵢ / Σ|w| over all adapters: one that lacks the layer counts as a change of nothing."""
    total = sum(abs(w) for w in weights)
    return [weights[index] / total if total else 0.0 for index in present]


def model_stock(weights: Sequence[float], gram: Tensor) -> list[float]:
    """t·wᵢ/n with t = n·cos / (1 + (n − 1)·cos), cos the mean cosine between the wᵢDᵢ (arXiv 2403.19522).

    Adapters that agree are averaged, adapters at right angles cancel. t is kept between 0 and 1.
    """
    n = len(weights)
    if n == 1:
        return list(weights)
    signs = torch.tensor([math.copysign(1.0, w) for w in weights], dtype=torch.float64)
    norms = gram.diagonal().clamp_min(0).sqrt()
    cosines = gram * signs[:, None] * signs / (norms[:, None] * norms).clamp_min(_TINY)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
    t = min(1.0, max(0.0, n * cosine / (1 + (n - 1) * cosine))) if cosine > 0 else 0.0
    return [t * w / n for w in weights]


def slerp(weights: Sequence[float], gram: Tensor) -> list[float]:
    """The weighted mean on the sphere, and of the lengths.

    With shares tᵢ = |wᵢ| / Σ|w| and unit vectors uᵢ = sign(wᵢ)·Dᵢ/|Dᵢ|: for two, u = sin((1−t)θ)/sin θ·u₁ +
    sin(tθ)/sin θ·u₂; for more, the Riemannian (Karcher) mean, found by averaging in the tangent space until
    it rests. D = (Σ tᵢ·|Dᵢ|)·u. Vectors of no length or opposite ones have no mean: those are added as they
    are.
    """
    total = sum(abs(w) for w in weights)
    if not total:
        return [0.0] * len(weights)
    shares = torch.tensor([abs(w) / total for w in weights], dtype=torch.float64)
    signs = torch.tensor([math.copysign(1.0, w) for w in weights], dtype=torch.float64)
    norms = gram.cpu().diagonal().clamp_min(0).sqrt()
    straight = (shares * signs).tolist()
    if float(norms.min()) <= _TINY:
        return straight
    to_unit = signs / norms
    cosines = (gram.cpu() * to_unit[:, None] * to_unit).clamp(-1.0, 1.0)
    mean = _sphere_mean(cosines, shares)
    if mean is None:
        return straight
    return (mean * to_unit * float((shares * norms).sum())).tolist()


def _sphere_mean(cosines: Tensor, shares: Tensor) -> Tensor | None:
    """Coefficients of the mean of unit vectors with these cosines, by their shares; None if there is none."""
    point = shares.clone()  # the mean in coordinates of the unit vectors
    for _ in range(_KARCHER_STEPS):
        length = float(point @ cosines @ point)
        if length <= _TINY:
            return None
        point = point / math.sqrt(length)
        along = (cosines @ point).clamp(-1.0, 1.0)
        if float(along.min()) < -1 + 1e-9:
            return None
        # log map: uᵢ seen from the mean is θᵢ/sin θᵢ·(uᵢ − cos θᵢ·mean).
        factors = shares * along.arccos() / (1 - along.square()).clamp_min(_TINY).sqrt()
        factors = torch.where(along > 1 - 1e-12, shares, factors)
        step = factors - float(factors @ along) * point
        size = math.sqrt(max(0.0, float(step @ cosines @ step)))
        if size < 1e-14:
            break
        point = math.cos(size) * point + math.sin(size) / size * step
    return point


def common_part(weights: Sequence[float], gram: Tensor) -> list[float]:
    """What of w₁D₁ lies in the span of the others: least squares, so the rest is at right angles to each."""
    others = gram.cpu()[1:, 1:]
    if not others.numel():
        return [0.0]
    norms = others.diagonal().clamp_min(0).sqrt().clamp_min(_TINY)
    scaled = others / (norms[:, None] * norms)
    wanted = gram.cpu()[1:, 0] / norms * weights[0]
    found = torch.linalg.pinv(scaled, rtol=1e-12, hermitian=True) @ wanted / norms
    return [0.0, *found.tolist()]


_TINY = 1e-300
_KARCHER_STEPS = 200


# ---- elementwise ----------------------------------------------------------------------------------------


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


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """TIES (arXiv 2306.01708): keep the largest ``density`` of each Dᵢ, elect signs, disjoint mean."""
    return elect([keep_largest(delta, density) for delta in deltas], weights)


def magnitude_prune(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Σ wᵢ·(the largest ``density`` of Dᵢ), without making up for what is dropped (as PEFT does)."""
    return _sum([keep_largest(delta, density) for delta in deltas], weights)


def dare(deltas: Sequence[Tensor], weights: Sequence[float], density: float, seed: int, layer: str) -> Tensor:
    """DARE (arXiv 2311.03099): keep elements with probability ``density``, divided by it; then Σ wᵢDᵢ."""
    thinned = [
        torch.where(uniform(delta, seed, layer, index) < density, delta / density, 0)
        for index, delta in enumerate(deltas)
    ]
    return _sum(thinned, weights)


def della(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    epsilon: float,
    seed: int,
    layer: str,
) -> Tensor:
    """DELLA (arXiv 2406.11617): drop small elements more often than large ones; then as TIES.

    Within each row the probability to be kept rises linearly with the rank by size, from density − ε/2 to
    density + ε/2; what is kept is divided by its own probability.
    """
    thinned = []
    for index, delta in enumerate(deltas):
        order = delta.abs().argsort(dim=1, stable=True).argsort(dim=1).to(delta.dtype)
        position = order / max(1, delta.shape[1] - 1)
        keep = (density - epsilon / 2 + epsilon * position).clamp(_LEAST, 1.0)
        drawn = uniform(delta, seed, layer, index) < keep
        thinned.append(torch.where(drawn, delta / keep, 0))
    return elect(thinned, weights)


def breadcrumbs(deltas: Sequence[Tensor], weights: Sequence[float], density: float, gamma: float) -> Tensor:
    """Model breadcrumbs (arXiv 2312.06795): Σ wᵢDᵢ without the extremes of each Dᵢ.

    Dropped are its ⌊γ·n⌋ largest elements and its ⌊(1 − density − γ)·n⌋ smallest ones.
    """
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


# A probability of 0 would divide by 0 what is never kept.
_LEAST = 1e-6


def _sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total += delta * weight
    return total


def uniform(like: Tensor, seed: int, layer: str, index: int) -> Tensor:
    """Uniform random numbers in [0, 1) of the shape of ``like``, on its device.

    Drawn on the CPU from (seed, layer, index) alone, so that they are bit for bit the same everywhere.
    """
    digest = hashlib.sha256(f"{seed}\0{layer}\0{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(tuple(like.shape), generator=generator).to(like.device)


# ---- between --------------------------------------------------------------------------------------------


def knots(
    factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float], density: float
) -> tuple[Tensor, Tensor]:
    """KnOTS (arXiv 2410.19735) as factors (up, down): TIES in a basis that the adapters share.

    [D₁ | … | D_n] = U·S·[V₁ᵀ | … | V_nᵀ]; the Vᵢᵀ are merged by ``ties``; D = U·S·Vᵀ. Each Dᵢ is given as
    (up, down); the decomposition is then one of R × R matrices, R the sum of the ranks. A dense Dᵢ is
    (identity, Dᵢ).
    """
    ups = torch.cat([up for up, _ in factors], dim=1)
    left, upper = torch.linalg.qr(ups)
    blocks, column = [], 0
    for up, down in factors:  # the columns of R that belong to this adapter, times its down
        blocks.append(upper[:, column : column + up.shape[1]] @ down)
        column += up.shape[1]
    side_by_side = torch.cat(blocks, dim=1)
    # The small side's Gram matrix in float64 gives U and S; V follows by projection.
    squares, vectors = torch.linalg.eigh(side_by_side.double() @ side_by_side.double().T)
    order = squares.flip(0) > squares[-1].clamp_min(0) * 1e-12
    u = vectors.flip(1)[:, order]
    spectrum = squares.flip(0)[order].sqrt()
    rows = [((u.T @ block.double()) / spectrum[:, None]).to(ups.dtype) for block in blocks]
    merged = ties(rows, weights, density)
    return left @ (u * spectrum).to(ups.dtype), merged
