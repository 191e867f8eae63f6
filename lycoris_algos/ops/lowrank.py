"""Low-rank algebra: products of two thin matrices without forming them, and thin parts of dense matrices.

Singular values alone come from Gram matrices (``product_spectrum``, ``gram_spectrum``). Three ways to a
truncated singular value decomposition, by what is given. Of a product of thin factors: QR of
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


def product_spectrum(up: Tensor, down: Tensor) -> Tensor:
    """The singular values (r,) of up·down (o, r)·(r, i), the largest first, in float64, to 1e-7 of that.

    From the Gram matrices of both factors, whose roots stand for the factors themselves: many times faster
    than ``product_svd``, which also makes the vectors.
    """
    thin, flat = up.double(), down.double()
    values, vectors = torch.linalg.eigh(thin.T @ thin)
    root = vectors * values.clamp_min(0).sqrt()
    squares: Tensor = torch.linalg.eigvalsh(root.T @ (flat @ flat.T) @ root)
    return squares.flip(0).clamp_min(0).sqrt()


def product_inner(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """⟨B1·A1, B2·A2⟩ (Frobenius) of two pairs of factors, by their Gram matrices, in float64."""
    (b1, a1), (b2, a2) = first, second
    outer = b1.double().T @ b2.double()
    return float((outer * (a1.double() @ a2.double().T)).sum())


def gram_spectrum(matrix: Tensor) -> Tensor:
    """All singular values (k,) of ``matrix``, the largest first, in float64, to 1e-8 of the largest."""
    squares: Tensor = torch.linalg.eigvalsh(_gram(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T))
    return squares.flip(0).clamp_min(0).sqrt()


def gram_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading (U, S, Vh) of ``matrix`` by the eigenvectors of its smaller Gram matrix."""
    if matrix.shape[0] > matrix.shape[1]:
        v, s, uh = gram_svd(matrix.T, rank)
        return uh.T, s, v.T
    _, vectors = torch.linalg.eigh(_gram(matrix))
    u = vectors.flip(1)[:, :rank]
    projected = u.T @ matrix.double()
    # Lengths measured on the matrix itself, not as roots of eigenvalues, which lose half of the digits.
    s = torch.linalg.vector_norm(projected, dim=1)
    vh = projected / s.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return u.to(matrix.dtype), s.to(matrix.dtype), vh.to(matrix.dtype)


# Columns that are widened to float64 at a time: a copy of a large weight would be twice its size.
_COLUMNS = 4096


def _gram(wide: Tensor) -> Tensor:
    """wide·wideᵀ in float64."""
    total = torch.zeros((wide.shape[0], wide.shape[0]), dtype=torch.float64, device=wide.device)
    for start in range(0, wide.shape[1], _COLUMNS):
        exact = wide[:, start : start + _COLUMNS].double()
        total.addmm_(exact, exact.T)
    return total


_OVERSAMPLE, _POWERS = 8, 2


def range_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading (U, S, Vh) of ``matrix`` through a random sketch.

    Block Krylov of Musco and Musco (arXiv 1504.05477): the range is sought in a sketch of rank + 8 columns
    (16 for the smallest ranks) and its first two powers together. The error stays below 1.01 times that of
    the best approximation, at ranks up to 32 below 1.005 times (tested on flat and on steep spectra). S is
    never above the true values. The sketch comes from a CPU generator, so it is the same everywhere.
    """
    seeded = torch.Generator().manual_seed(0)
    width = min(rank + (_OVERSAMPLE if rank >= _OVERSAMPLE else 2 * _OVERSAMPLE), *matrix.shape)
    sketch = torch.randn((matrix.shape[1], width), generator=seeded).to(matrix)
    blocks = [torch.linalg.qr(matrix @ sketch)[0]]
    for _ in range(_POWERS):
        blocks.append(torch.linalg.qr(matrix @ (matrix.T @ blocks[-1]))[0])
    basis = torch.linalg.qr(torch.cat(blocks, dim=1))[0]
    u, s, vh = gram_svd(basis.T @ matrix, rank)
    return basis @ u, s, vh


def leading_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading (U, S, Vh) of a dense ``matrix``, the fastest way that its size allows."""
    if sketchable(matrix, rank):
        return range_svd(matrix, rank)
    return gram_svd(matrix, min(rank, *matrix.shape))


def leading_values(matrix: Tensor, most: int) -> Tensor:
    """The ``most`` largest singular values of a dense ``matrix``, the fastest way that its size allows."""
    return range_svd(matrix, most)[1] if sketchable(matrix, most) else gram_spectrum(matrix)[:most]


def sketchable(matrix: Tensor, rank: int) -> bool:
    """Whether a sketch for ``rank`` is cheaper than the Gram matrix."""
    smaller = min(matrix.shape)
    return smaller >= _SKETCH_FROM and rank + _OVERSAMPLE <= smaller // 6


# Below this size a Gram matrix is so small that sketching gains nothing.
_SKETCH_FROM = 256
