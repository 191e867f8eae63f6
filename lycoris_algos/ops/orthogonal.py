"""Orthogonal matrices from unconstrained ones: the Cayley transform and its series."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadValueError


def cayley(skew: Tensor) -> Tensor:
    """(I + Q)(I − Q)⁻¹ for a batch of skew-symmetric Q (…, b, b): orthogonal for every Q.

    Raises BadValueError for numbers beside which the 1 of I is lost.
    """
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    # X(I − Q) = I + Q, solved from the right without forming the inverse.
    try:
        rotation: Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise BadValueError(
            "its rotation is made of numbers that no training reaches: the file is damaged"
        ) from error
    return rotation


def cayley_neumann(skew: Tensor, last: float = 1.0) -> Tensor:
    """The first five terms of the Cayley transform's series, I + 2Q + 2Q² + 2Q³ + last·Q⁴, for (…, b, b).

    Not exactly orthogonal; it is what trains where this form is used.
    """
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    square = skew @ skew
    return identity + 2 * skew + 2 * square + 2 * square @ skew + last * square @ square


def skew_from_blocks(blocks: Tensor, limit: float | None) -> Tensor:
    """B − Bᵀ for a batch (…, b, b), shrunk where its Frobenius norm over all blocks exceeds ``limit``."""
    skew = blocks - blocks.mT
    if limit is None:
        return skew
    norm = torch.linalg.vector_norm(skew) + 1e-8
    return skew * torch.clamp(limit / norm, max=1.0)


def skew_from_triangle(vectors: Tensor) -> Tensor:
    """Skew-symmetric (n, b, b) from their upper triangles in row order (n, b·(b−1)/2)."""
    size = block_size(vectors.shape[1])
    skew = vectors.new_zeros((vectors.shape[0], size, size))
    row, column = torch.triu_indices(size, size, 1, device=vectors.device)
    skew = skew.index_put((torch.arange(len(vectors), device=vectors.device)[:, None], row, column), vectors)
    return skew - skew.mT


def block_size(triangle: int) -> int:
    """b for a triangle of b·(b−1)/2 numbers; 0 if there is no such b."""
    size = round((1 + (1 + 8 * triangle) ** 0.5) / 2)
    return size if size * (size - 1) // 2 == triangle else 0
