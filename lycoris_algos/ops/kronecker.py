"""Kronecker products without forming them.

kron(a, b) of a (p, i) and b (q, j) is p·q × i·j, but seen as a four-dimensional array it is only a
broadcast product a[p, ·, i, ·]·b[·, q, ·, j]. Adding it to a weight therefore needs one pass over the
weight and no temporary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lowrank import leading_svd, leading_values


def add_kron_rows_(rows: Tensor, start: int, a: Tensor, b: Tensor, multiplier: float) -> None:
    """rows += multiplier · kron(a, b)[start : start + n], in place.

    ``rows`` is (n, i·j) of the (p·q, i·j) matrix, with any strides; ``a`` is (p, i), ``b`` is (q, j).
    """
    q, j = b.shape
    i = a.shape[1]
    done, total = 0, rows.shape[0]
    while done < total:
        block, offset = divmod(start + done, q)
        if offset == 0 and total - done >= q:  # whole blocks: all of b under each row of a
            count = (total - done) // q
            view = rows[done : done + count * q].view(count, q, i, j)
            view.addcmul_(a[block : block + count, None, :, None], b[:, None, :], value=multiplier)
            done += count * q
        else:  # the part of one block that these rows cover
            count = min(q - offset, total - done)
            view = rows[done : done + count].view(count, i, j)
            view.addcmul_(a[block, :, None], b[offset : offset + count, None, :], value=multiplier)
            done += count


def kron_factors(
    a: Tensor | tuple[Tensor, Tensor], b: Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(up, down) with up·down = a ⊗ b and as many ranks as a and b have, multiplied.

    Each may be given as two low-rank factors. (Ua·Da) ⊗ (Ub·Db) = (Ua ⊗ Ub)·(Da ⊗ Db).
    """
    ua, da = _thin(a) if isinstance(a, Tensor) else a
    ub, db = _thin(b) if isinstance(b, Tensor) else b
    return kron(ua, ub), kron(da, db)


def kron(a: Tensor, b: Tensor) -> Tensor:
    """a (p, i) ⊗ b (q, j) for any strides; torch.kron fails on some views."""
    product = a[:, None, :, None] * b[None, :, None, :]
    return product.reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


def _thin(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of ``matrix``, as thin as it allows: itself and the identity where it has full rank."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = int((s > s[0] * _NO_RANK).sum())
    if 0 < rank < s.numel():
        return (u[:, :rank] * s[:rank]).to(matrix.dtype), vh[:rank].to(matrix.dtype)
    identity = torch.eye(s.numel(), dtype=matrix.dtype, device=matrix.device)
    return (matrix, identity) if matrix.shape[0] >= matrix.shape[1] else (identity, matrix)


# Singular values below this share of the largest are what float32 products leave of a zero.
_NO_RANK = 1e-6


def nearest_kronecker(matrix: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(a (rows, columns), b) with a ⊗ b nearest to ``matrix`` in the Frobenius norm.

    Van Loan and Pitsianis (doi 10.1007/978-94-015-8196-7_17): rearranged so that each block of ``matrix``
    becomes a row, a Kronecker product is a matrix of rank one, so the nearest one is its leading pair of
    singular vectors. ``rows`` and ``columns`` must divide those of ``matrix``.
    """
    blocks = _rearranged(matrix, rows, columns)
    u, s, vh = leading_svd(blocks, 1)
    root = s[0].sqrt()
    height, width = matrix.shape[0] // rows, matrix.shape[1] // columns
    return (u[:, 0] * root).reshape(rows, columns), (vh[0] * root).reshape(height, width)


def kronecker_share(matrix: Tensor, rows: int, columns: int) -> float:
    """About the share of ΣD² that ``nearest_kronecker`` keeps, rather too much than too little.

    In a small part of the time: a few rows of each block tell how alike the blocks are, and make parts of
    noise look more alike than all of it is.
    """
    height = matrix.shape[0] // rows
    few = matrix.reshape(rows, height, -1)[:, :: max(1, height // _ROWS)].flatten(0, 1)
    blocks = _rearranged(few, rows, columns)
    total = float(torch.linalg.vector_norm(blocks, dtype=torch.float64)) ** 2
    return min(1.0, float(leading_values(blocks, 1)) ** 2 / total) if total else 1.0


# Rows of a block that are looked at.
_ROWS = 8


def _rearranged(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """R[(i1, j1), (i2, j2)] = matrix[i1·m2 + i2, j1·n2 + j2]."""
    blocks = matrix.reshape(rows, matrix.shape[0] // rows, columns, matrix.shape[1] // columns)
    return blocks.transpose(1, 2).reshape(rows * columns, -1)
