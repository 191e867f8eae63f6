"""Rotations from skew-symmetric matrices, and those from what files store."""

from __future__ import annotations

import pytest
import torch

from lycoris_algos.ops.orthogonal import (
    block_size,
    cayley,
    cayley_neumann,
    skew_from_blocks,
    skew_from_triangle,
)


def skew(size: int, scale: float = 0.3) -> torch.Tensor:
    blocks = torch.randn(3, size, size, dtype=torch.float64) * scale
    return blocks - blocks.mT


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_cayley_transform_is_orthogonal_and_that_of_its_matrix(size: int) -> None:
    one, q = torch.eye(size, dtype=torch.float64), skew(size)
    turned = cayley(q)
    assert torch.allclose(turned @ turned.mT, one.expand(3, -1, -1), atol=1e-12)
    assert torch.allclose(turned @ (one - q), one + q, atol=1e-12)


@pytest.mark.parametrize("size", [2, 5])
def test_the_series_is_the_transform_up_to_its_last_term(size: int) -> None:
    q = skew(size, 3e-4)
    power, rest = torch.linalg.matrix_power(q, 4), 4 * float(q.norm()) ** 5
    assert torch.allclose(cayley_neumann(q, last=2.0), cayley(q), rtol=0, atol=rest)
    assert torch.allclose(cayley_neumann(q), cayley_neumann(q, last=2.0) - power, rtol=0, atol=1e-15)
    assert float(power.abs().max()) > rest, "or the last term would make no difference"


def test_blocks_are_shrunk_only_where_they_exceed_the_limit() -> None:
    blocks = torch.randn(3, 4, 4, dtype=torch.float64)
    whole = blocks - blocks.mT
    norm = float(whole.norm())
    assert torch.equal(skew_from_blocks(blocks, None), whole)
    assert torch.equal(skew_from_blocks(blocks, norm + 0.1), whole)
    assert torch.allclose(skew_from_blocks(blocks, norm / 3), whole / 3, rtol=1e-7)
    assert not skew_from_blocks(torch.zeros(2, 3, 3), 0.5).any()


def test_triangles_are_read_by_rows() -> None:
    (found,) = skew_from_triangle(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    wanted = [[0, 1, 2, 3], [-1, 0, 4, 5], [-2, -4, 0, 6], [-3, -5, -6, 0]]
    assert torch.equal(found, torch.tensor(wanted, dtype=torch.float32))


def test_the_size_of_a_block_from_its_triangle() -> None:
    sizes = {size * (size - 1) // 2: size for size in range(1, 200)}
    for triangle in range(20_000):
        if triangle < max(sizes):
            assert block_size(triangle) == sizes.get(triangle, 0)
