"""``absorb_input`` against the sum that defines it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lycoris_algos.ops.tucker import absorb_input


@pytest.mark.parametrize("kernel", [(), (1,), (3,), (3, 2), (1, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(("r", "q", "i"), [(3, 3, 5), (2, 4, 3), (1, 1, 1)])
def test_the_sum(kernel: tuple[int, ...], r: int, q: int, i: int) -> None:
    core, inner = torch.randn(r, q, *kernel, dtype=torch.float64), torch.randn(q, i, dtype=torch.float64)
    expected = np.zeros((r, i, *kernel))
    for row in range(r):
        for column in range(i):
            for place in np.ndindex(*kernel):
                for rank in range(q):
                    expected[(row, column, *place)] += core[(row, rank, *place)] * inner[rank, column]
    got = absorb_input(core, inner)
    assert got.shape == (r, i * int(np.prod(kernel)))
    assert np.allclose(got.numpy(), expected.reshape(r, -1), rtol=0, atol=1e-14)


def test_gradients() -> None:
    leaves = [torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)]
    assert torch.autograd.gradcheck(absorb_input, [leaf.requires_grad_() for leaf in leaves])
