"""Tucker (CP) convolutions: a small kernel tensor between two matrices.

A trainer that splits a k×k convolution this way stores a core t (r, r, k…) and matrices on both channel
axes. Contracting the input side first turns every Tucker adapter into an ordinary two-factor one of the
same rank, whose second factor already has the kernel in it, so that no algorithm needs a second code path.

The fit is the higher-order orthogonal iteration of De Lathauwer, De Moor and Vandewalle
(doi 10.1137/S0895479898346995): each side's basis in turn is the best one for the other's, so that the error
never grows. It starts from the leading singular vectors of both unfoldings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lowrank import leading_svd, leading_values

_SWEEPS = 2


def absorb_input(core: Tensor, inner: Tensor) -> Tensor:
    """t (r, q, k…) and b (q, i) to the matrix (r, i·∏k) with Σ_q t[r, q, k…]·b[q, i]."""
    merged = torch.einsum("rq...,qi->ri...", core, inner)
    return merged.reshape(core.shape[0], -1)


def fit_tucker(tensor: Tensor, rank: int, sweeps: int = _SWEEPS) -> tuple[Tensor, Tensor, Tensor]:
    """(up (o, r), core (r, r, k), down (r, i)) near ``tensor`` (o, i, k); r is ``rank``, o or i at most.

    ``up`` and ``down`` are orthonormal, and all of the size is in the core.
    """
    rank = min(rank, *tensor.shape[:2])
    up = leading_svd(tensor.flatten(1), rank)[0]
    down = leading_svd(tensor.transpose(0, 1).flatten(1), rank)[0]
    for _ in range(sweeps):
        up = leading_svd(torch.einsum("oik,ir->ork", tensor, down).flatten(1), rank)[0]
        down = leading_svd(torch.einsum("oik,or->irk", tensor, up).flatten(1), rank)[0]
    core = torch.einsum("ork,oq->qrk", torch.einsum("oik,ir->ork", tensor, down), up)
    return up.contiguous(), core.contiguous(), down.T.contiguous()


def tucker_energy(tensor: Tensor, values: Tensor) -> list[float]:
    """Σ of squares of ``tensor`` (o, i, k) that ``fit_tucker`` keeps at least, for ranks 1, 2, …

    ``values`` are the first singular values of the outputs' unfolding (o, i·k), of which as many count. What
    is lost is no more than what each side loses alone, added up.
    """
    total = float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
    most = min(values.numel(), *tensor.shape[:2])
    others = leading_values(tensor.transpose(0, 1).flatten(1), most)
    kept = sum(side[:most].double().square().cumsum(0).clamp_max(total) for side in (values, others))
    return [max(0.0, float(both) - total) for both in kept]  # type: ignore[union-attr]
