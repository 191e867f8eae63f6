"""Merge methods that see deltas as vectors, with angles, lengths and shared directions (slerp, KnOTS …)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._registry import Kind, method
from .adding import average
from .dropping import ties

_TINY = 1e-300
_KARCHER_STEPS = 200


@method(
    "model stock",
    Kind.GRAM,
    "The average, made weaker on layers where the adapters disagree.",
    at_least=2,
    reference="arXiv 2403.19522",
)
def model_stock(weights: Sequence[float], present: Sequence[int], gram: Tensor) -> list[float]:
    """t·wᵢ/n with t = n·cos / (1 + (n − 1)·cos), cos the mean cosine between the wᵢDᵢ; n have the layer.

    Adapters that agree are averaged, adapters at right angles cancel. t is kept between 0 and 1.
    """
    own = [weights[index] for index in present]
    n = len(own)
    if n == 1:
        return own
    signs = torch.tensor([math.copysign(1.0, w) for w in own], dtype=torch.float64)
    norms = gram.diagonal().clamp_min(0).sqrt()
    cosines = gram * signs[:, None] * signs / (norms[:, None] * norms).clamp_min(_TINY)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
    t = min(1.0, max(0.0, n * cosine / (1 + (n - 1) * cosine))) if cosine > 0 else 0.0
    return [t * w / n for w in own]


@method(
    "slerp",
    Kind.GRAM,
    "The average of directions and lengths, so that the result is not weaker than its parts.",
    at_least=2,
)
def slerp(weights: Sequence[float], present: Sequence[int], gram: Tensor) -> list[float]:
    """The weighted mean on the sphere, and of the lengths.

    With shares tᵢ = |wᵢ| / Σ|w| and unit vectors uᵢ = sign(wᵢ)·Dᵢ/|Dᵢ|: for two, u = sin((1−t)θ)/sin θ·u₁ +
    sin(tθ)/sin θ·u₂; for more, the Riemannian (Karcher) mean, found by averaging in the tangent space until
    it rests. D = (Σ tᵢ·|Dᵢ|)·u. Vectors of no length or opposite ones have no mean: those are added as they
    are.
    """
    if len(present) < len(weights):  # one adapter lacks the layer, and nothing has no direction: straight
        return average(weights, present)
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


@method(
    "knots",
    Kind.SINGULAR_VECTORS,
    "ties in a basis that the adapters share.",
    reference="arXiv 2410.19735",
)
def knots(
    factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float], *, density: float
) -> tuple[Tensor, Tensor]:
    """[D₁ | … | D_n] = U·S·[V₁ᵀ | … | V_nᵀ]; the Vᵢᵀ are merged by ``ties``; D = U·S·Vᵀ as (U·S, Vᵀ).

    The decomposition is one of R × R matrices, R the sum of the ranks. A dense Dᵢ is (identity, Dᵢ).
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
    merged = ties(rows, weights, density=density)
    return left @ (u * spectrum).to(ups.dtype), merged
