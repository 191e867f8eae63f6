"""Low-rank algebra: products of two thin matrices without forming them, and thin parts of dense matrices.

Three ways to a truncated singular value decomposition, by what is given. Of a product of thin factors: QR of
both, then a small one (``product_svd``). Of a dense matrix: the eigenvectors of its smaller Gram matrix in
float64 (``gram_svd``), several times faster than a full decomposition and exact for every singular value
above 1e-7 of the largest; or, where only few of many are wanted, a random range finder (``range_svd``).
``leading_svd`` chooses. All are deterministic.
"""

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


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U (o, k), S (k,), Vh (k, i)) of up (o, r)·down (r, i), k = min(o, r, i), in their dtype.

    QR of both factors and the decomposition of a small matrix; the product is never formed.
    """
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd((upper.double() @ lower.double().T), full_matrices=False)
    return left @ u.to(up.dtype), s.to(up.dtype), vh.to(up.dtype) @ right.T


def product_inner(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """⟨B1·A1, B2·A2⟩ (Frobenius) of two pairs of factors, by their Gram matrices, in float64."""
    (b1, a1), (b2, a2) = first, second
    outer = b1.double().T @ b2.double()
    return float((outer * (a1.double() @ a2.double().T)).sum())


def gram_spectrum(matrix: Tensor) -> Tensor:
    """All singular values (k,) of ``matrix``, the largest first, in float64, to 1e-8 of the largest."""
    thin = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.T.double()
    squares: Tensor = torch.linalg.eigvalsh(thin @ thin.T)
    return squares.flip(0).clamp_min(0).sqrt()


def gram_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading (U, S, Vh) of ``matrix`` by the eigenvectors of its smaller Gram matrix."""
    if matrix.shape[0] > matrix.shape[1]:
        v, s, uh = gram_svd(matrix.T, rank)
        return uh.T, s, v.T
    wide = matrix.double()
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    u = vectors.flip(1)[:, :rank]
    projected = u.T @ wide
    # Lengths measured on the matrix itself, not as roots of eigenvalues, which lose half of the digits.
    s = torch.linalg.vector_norm(projected, dim=1)
    vh = projected / s.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return u.to(matrix.dtype), s.to(matrix.dtype), vh.to(matrix.dtype)


_OVERSAMPLE, _POWER = 16, 3


def range_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading (U, S, Vh) of ``matrix`` through a random sketch of rank + 16 columns.

    Halko, Martinsson and Tropp (arXiv 0909.4061) with three power iterations: the error stays below 1.01
    times that of the best approximation (tested on flat and on steep spectra). The sketch comes from a CPU
    generator, so it is the same everywhere.
    """
    seeded = torch.Generator().manual_seed(0)
    width = min(rank + _OVERSAMPLE, *matrix.shape)
    sketch = torch.randn((matrix.shape[1], width), generator=seeded).to(matrix)
    basis = torch.linalg.qr(matrix @ sketch)[0]
    for _ in range(_POWER):
        basis = torch.linalg.qr(matrix.T @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], vh[:rank]


def leading_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading (U, S, Vh) of a dense ``matrix``, the fastest way that its size allows."""
    smaller = min(matrix.shape)
    if smaller >= _SKETCH_FROM and rank + _OVERSAMPLE <= smaller // 8:
        return range_svd(matrix, rank)
    return gram_svd(matrix, min(rank, smaller))


# Below this size a Gram matrix is so small that sketching gains nothing.
_SKETCH_FROM = 256
