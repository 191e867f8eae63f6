"""Products of two thin matrices, treated without forming the product."""

from __future__ import annotations

import torch
from torch import Tensor


def best_factors(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of up·down (o, r)·(r, i) of at most ``rank``, as factors of the same kind.

    Best in the Frobenius norm, by QR of both factors and the SVD of an r × r matrix (Eckart–Young); the
    singular values are shared evenly between the factors. Solved in float64, because singular values that
    lie close together would otherwise mix what is kept with what is not; float32 comes back. Where
    ``rank`` is not smaller than r, the factors come back as they are.
    """
    if rank >= down.shape[0]:
        return up, down
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().T)
    u, s, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = s[:rank].sqrt()
    best_up = left @ (u[:, :rank] * root)
    best_down = (vh[:rank] * root[:, None]) @ right.T
    return best_up.float(), best_down.float()
