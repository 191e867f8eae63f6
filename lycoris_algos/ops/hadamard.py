"""Elementwise products of two low-rank matrices: exactly as one low-rank matrix, and fitted to a dense one.

    (A1·B1) ⊙ (A2·B2) = (A1 ⊙row A2)·(B1 ⊙col B2)           Khatri–Rao products, of rank r1·r2

The fit is alternating least squares. With three factors fixed, the product is linear in the fourth, row by
row, so each step is a batch of r × r solves and never makes the error larger. It starts from the singular
value decompositions of √|D| and sign(D)·√|D|, whose elementwise product is D, and is deterministic. It finds
a local optimum only, and slowly near the end; the number of sweeps bounds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lowrank import leading_svd

_SWEEPS = 60
# A sweep that gains less than this share of |D|² is the last.
_GAIN = 1e-5
_RIDGE = 1e-9


def khatri_rao(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """(up (o, r1·r2), down (r1·r2, i)) with up·down = (a1 (o, r1)·b1) ⊙ (a2 (o, r2)·b2 (r2, i))."""
    up = (a1[:, :, None] * a2[:, None, :]).reshape(a1.shape[0], -1)
    down = (b1[:, None, :] * b2[None, :, :]).reshape(-1, b1.shape[1])
    return up, down


def fit_hadamard(matrix: Tensor, rank: int, sweeps: int = _SWEEPS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a1 (o, r), b1 (r, i), a2, b2) with (a1·b1) ⊙ (a2·b2) near ``matrix`` (o, i); see this module.

    r is ``rank``, or the smaller size of the matrix where that is less.
    """
    root = matrix.abs().sqrt()
    a1, b1 = _balanced(root * matrix.sign(), rank)
    a2, b2 = _balanced(root, rank)
    total = float(matrix.square().sum())
    if total == 0.0:
        return a1, b1, a2, b2
    left = total
    for _ in range(sweeps):
        for _ in range(2):  # one half, then the other
            second = a2 @ b2
            a1 = _solve(matrix, second, b1)
            b1 = _solve(matrix.T, second.T, a1.T).T
            a1, b1, a2, b2 = a2, b2, a1, b1
        error = float((matrix - (a1 @ b1) * (a2 @ b2)).square().sum())
        if left - error <= _GAIN * total:
            break
        left = error
    return a1.contiguous(), b1.contiguous(), a2.contiguous(), b2.contiguous()


def _balanced(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, vh = leading_svd(matrix, rank)
    root = s.sqrt()
    return u * root, vh * root[:, None]


def _solve(target: Tensor, mask: Tensor, right: Tensor) -> Tensor:
    """a (o, r) minimising |target − (a·right) ⊙ mask|², row by row."""
    rank = right.shape[0]
    pairs = (right[:, None, :] * right[None, :, :]).reshape(rank * rank, -1)
    normal = (mask.square() @ pairs.T).reshape(-1, rank, rank)
    wanted = (mask * target) @ right.T
    ridge = normal.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(target.dtype).tiny) * _RIDGE
    identity = torch.eye(rank, dtype=target.dtype, device=target.device)
    # In float64: the normal equations square the condition number.
    system = (normal + ridge[:, None, None] * identity).double()
    solved: Tensor = torch.linalg.solve(system, wanted.double())
    return solved.to(target.dtype)
