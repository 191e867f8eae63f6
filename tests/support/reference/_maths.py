"""What the forms are computed with: rotations, products, norms. float64 in, float64 out."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(*shape: int, std: float = 1.0) -> Tensor:
    """Numbers that a float32 file holds exactly, to compute with in float64."""
    return (torch.randn(shape) * std).double()


def number(value: float) -> Tensor:
    return torch.tensor(value)


def product(up: Tensor, down: Tensor, weight: Tensor) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def kernel(core: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """Σ_ab core[a, b, k…]·outer[a, p]·inner[b, q]"""
    return torch.einsum("ab...,ap,bq->pq...", core, outer, inner)


def rows_norm(value: Tensor) -> Tensor:
    """‖row‖ of every output, shaped to divide by."""
    return value.flatten(1).norm(dim=1).reshape(-1, *(1,) * (value.dim() - 1))


def cayley(q: Tensor) -> Tensor:
    """(I + Q)(I − Q)⁻¹"""
    one = torch.eye(q.shape[-1], dtype=q.dtype)
    return (one + q) @ torch.linalg.inv(one - q)


def skew(blocks: Tensor) -> Tensor:
    return blocks - blocks.transpose(-1, -2)


def rotate_outputs(r: Tensor, weight: Tensor) -> Tensor:
    """W'[k, m] = Σ_n R[k, n, m]·W[k, n]"""
    count, size, _ = r.shape
    rows = weight.reshape(count, size, -1)
    return torch.einsum("knm,knx->kmx", r, rows).reshape(weight.shape)


def butterfly(r: Tensor, weight: Tensor) -> Tensor:
    """BOFT: stage t deals out the rows of each 2^t·b, multiplies them by blocks and collects them."""
    stages, _, size, _ = r.shape
    rows = weight.flatten(1)
    for stage in range(stages):
        half = 2**stage * size // 2
        order = torch.arange(rows.shape[0]).reshape(-1, 2, half).transpose(1, 2).flatten()
        mixed = torch.block_diag(*r[stage]) @ rows[order]
        rows = torch.empty_like(rows).index_copy_(0, order, mixed)
    return rows.reshape(weight.shape)


def upper(vectors: Tensor, size: int) -> Tensor:
    """Skew matrices out of their upper triangles, row by row."""
    full = torch.zeros(vectors.shape[0], size, size, dtype=vectors.dtype)
    rows, columns = torch.triu_indices(size, size, 1)
    full[:, rows, columns] = vectors
    return full - full.transpose(1, 2)


def neumann(q: Tensor) -> Tensor:
    """PEFT's approximation of (I + Q)(I − Q)⁻¹ by five terms, the last one halved."""
    one = torch.eye(q.shape[-1], dtype=q.dtype)
    return one + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q


def rotate_inputs(r: Tensor, weight: Tensor) -> Tensor:
    """W·Rᵀ per block of inputs."""
    return weight @ torch.block_diag(*r).T
