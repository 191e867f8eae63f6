"""Tucker (CP) convolutions: a small kernel tensor between two matrices.

A trainer that splits a k×k convolution this way stores a core t (r, r, k…) and matrices on both channel
axes. Contracting the input side first turns every Tucker adapter into an ordinary two-factor one of the
same rank, whose second factor already has the kernel in it, so that no algorithm needs a second code path.
"""

from __future__ import annotations

import torch
from torch import Tensor


def absorb_input(core: Tensor, inner: Tensor) -> Tensor:
    """t (r, q, k…) and b (q, i) to the matrix (r, i·∏k) with Σ_q t[r, q, k…]·b[q, i]."""
    merged = torch.einsum("rq...,qi->ri...", core, inner)
    return merged.reshape(core.shape[0], -1)
