"""Elementwise products of two low-rank matrices: exactly as one low-rank matrix, and fitted to a dense one.

    (A1·B1) ⊙ (A2·B2) = (A1 ⊙row A2)·(B1 ⊙col B2)           Khatri–Rao products, of rank r1·r2

The fit is alternating least squares. With three factors fixed, the product is linear in the fourth, row by
row, so each step is a batch of r × r solves and never makes the error larger. It starts from the singular
value decompositions of √|D| and sign(D)·√|D|, whose elementwise product is D, and tries some random starts
too: it finds a local optimum only, and slowly near the end. It is deterministic; the number of sweeps bounds
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lowrank import leading_svd

_SWEEPS = 25
# Starts that are tried, and the sweeps in which another one has to overtake the first.
_STARTS, _TRIAL = 4, 8
# A sweep that gains less than this share of |D|² is the last.
_GAIN = 1e-4
_RIDGE = 1e-9


def khatri_rao(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """(up (o, r1·r2), down (r1·r2, i)) with up·down = (a1 (o, r1)·b1) ⊙ (a2 (o, r2)·b2 (r2, i))."""
    up = (a1[:, :, None] * a2[:, None, :]).reshape(a1.shape[0], -1)
    down = (b1[:, None, :] * b2[None, :, :]).reshape(-1, b1.shape[1])
    return up, down


def fit_hadamard(
    matrix: Tensor, rank: int, sweeps: int = _SWEEPS, starts: int = _STARTS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a1 (o, r), b1 (r, i), a2, b2) with (a1·b1) ⊙ (a2·b2) near ``matrix`` (o, i); see this module.

    r is ``rank``, or the smaller size of the matrix where that is less.
    """
    total = float(matrix.square().sum())
    best = _swept(matrix, _starts(matrix, rank, 0), sweeps if total else 0, total)
    for number in range(1, starts if total else 1):
        other = _swept(matrix, _starts(matrix, rank, number), min(sweeps, _TRIAL), total)
        if other[0] < best[0]:
            best = _swept(matrix, other[1], sweeps, total)
    a1, b1, a2, b2 = best[1]
    return a1.contiguous(), b1.contiguous(), a2.contiguous(), b2.contiguous()


_Halves = tuple[Tensor, Tensor, Tensor, Tensor]


def _starts(matrix: Tensor, rank: int, number: int) -> _Halves:
    """Where the sweeps begin: 0 at the decompositions of both roots, others at random, always the same."""
    if number == 0:
        root = matrix.abs().sqrt()
        return (*_balanced(root * matrix.sign(), rank), *_balanced(root, rank))
    seeded = torch.Generator().manual_seed(number)
    rank = min(rank, *matrix.shape)
    sizes = 2 * ((matrix.shape[0], rank), (rank, matrix.shape[1]))
    a1, b1, a2, b2 = (torch.randn(size, generator=seeded).to(matrix) for size in sizes)
    return a1, b1, a2, b2


def _swept(matrix: Tensor, halves: _Halves, sweeps: int, total: float) -> tuple[float, _Halves]:
    """(the squared error, the factors) after ``sweeps`` from ``halves`` on, or fewer that gain enough."""
    a1, b1, a2, b2 = halves
    left = total
    for _ in range(sweeps):
        for _ in range(2):  # one half, then the other
            second = a2 @ b2
            a1 = _solve(matrix, second, b1)
            b1 = _solve(matrix.T, second.T, a1.T).T
            a1, b1, a2, b2 = a2, b2, a1, b1
        error = float((matrix - (a1 @ b1) * (a2 @ b2)).square().sum())
        gained, left = left - error, error
        if gained <= _GAIN * total:
            break
    return left, (a1, b1, a2, b2)


def _balanced(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, vh = leading_svd(matrix, rank)
    root = s.sqrt()
    return u * root, vh * root[:, None]


def _solve(target: Tensor, mask: Tensor, right: Tensor) -> Tensor:
    """a (o, r) minimising |target − (a·right) ⊙ mask|², row by row."""
    rank = right.shape[0]
    row, column = torch.triu_indices(rank, rank, device=target.device)
    upper = mask.square() @ (right[row] * right[column]).T  # the normal matrices are symmetric
    normal = upper.new_empty((target.shape[0], rank, rank))
    normal[:, row, column] = normal[:, column, row] = upper
    wanted = (mask * target) @ right.T
    ridge = normal.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(target.dtype).tiny) * _RIDGE
    identity = torch.eye(rank, dtype=target.dtype, device=target.device)
    # In float64: the normal equations square the condition number.
    system = (normal + ridge[:, None, None] * identity).double()
    solved: Tensor = torch.linalg.solve(system, wanted.double())
    return solved.to(target.dtype)
