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

from .lowrank import gram_spectrum, leading_svd

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


def tucker_energy(tensor: Tensor) -> list[float]:
    """Σ of squares of ``tensor`` (o, i, k) that ``fit_tucker`` keeps at least, for ranks 1, 2, … o or i.

    What is lost is no more than what each side loses alone, added up.
    """
    sides = [gram_spectrum(side.flatten(1)).square() for side in (tensor, tensor.transpose(0, 1))]
    total = float(sides[0].sum())
    most = min(tensor.shape[:2])
    lost = sum((side.sum() - side.cumsum(0))[:most] for side in sides)
    return [max(0.0, total - float(tail)) for tail in lost]  # type: ignore[union-attr]
