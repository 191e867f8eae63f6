"""``add_kron_rows_`` against numpy's kron, for every way in which rows can lie across its blocks; shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos.ops.kronecker import add_kron_rows_, kronecker_share, nearest_kronecker

small = st.integers(1, 5)


def factors(p: int, i: int, q: int, j: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(p + 7 * i + 49 * q + 343 * j)
    return torch.randn(p, i, dtype=torch.float64), torch.randn(q, j, dtype=torch.float64)


def exact(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return np.kron(a.numpy(), b.numpy())


@pytest.mark.parametrize(("p", "i", "q", "j"), [(3, 2, 4, 5), (1, 1, 6, 3), (5, 4, 1, 1), (2, 3, 3, 2)])
def test_every_range_of_rows(p: int, i: int, q: int, j: int) -> None:
    a, b = factors(p, i, q, j)
    whole = exact(a, b)
    for start in range(p * q):
        for stop in range(start + 1, p * q + 1):
            rows = torch.full((stop - start, i * j), 0.5, dtype=torch.float64)
            add_kron_rows_(rows, start, a, b, -1.5)
            assert np.allclose(rows.numpy(), 0.5 - 1.5 * whole[start:stop], rtol=0, atol=1e-14), (start, stop)


def test_no_rows_is_nothing() -> None:
    a, b = factors(2, 2, 2, 2)
    add_kron_rows_(torch.empty(0, 4, dtype=torch.float64), 1, a, b, 1.0)


@given(small, small, small, small, st.data())
def test_any_strides_and_nothing_outside(p: int, i: int, q: int, j: int, data: st.DataObject) -> None:
    a, b = factors(p, i, q, j)
    start = data.draw(st.integers(0, p * q - 1))
    count = data.draw(st.integers(1, p * q - start))
    transposed, left, step = (
        data.draw(st.booleans()),
        data.draw(st.integers(0, 3)),
        data.draw(st.integers(1, 2)),
    )
    shape = (left + i * j * step, count + 2) if transposed else (count + 2, left + i * j * step)
    storage = torch.zeros(shape, dtype=torch.float64)
    view = (storage.T if transposed else storage)[1:-1, left::step]
    assert view.shape == (count, i * j)
    add_kron_rows_(view, start, a, b, 2.0)
    assert np.allclose(view.numpy(), 2 * exact(a, b)[start : start + count], rtol=0, atol=1e-14)
    view.zero_()
    assert not storage.any()


def test_factors_that_are_views() -> None:
    a, b = factors(3, 2, 4, 5)
    rows = torch.zeros(12, 10, dtype=torch.float64)
    add_kron_rows_(rows, 0, a.T.contiguous().T, b.T.contiguous().T, 1.0)
    assert np.allclose(rows.numpy(), exact(a, b), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 4), (8, 16)])
@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_the_share_of_the_nearest_product_is_told_without_it(rows: int, columns: int, noise: float) -> None:
    first, second = torch.randn(rows, columns), torch.randn(256 // rows, 320 // columns)
    matrix = torch.kron(first, second) + noise * torch.randn(256, 320)
    w1, w2 = nearest_kronecker(matrix, rows, columns)
    kept = float(w1.square().sum() * w2.square().sum() / matrix.square().sum())
    told = kronecker_share(matrix, rows, columns)
    assert 0.85 * kept <= told <= min(1.0, kept + 0.4)
    if noise == 0.0:
        assert told == pytest.approx(1.0, abs=1e-4)
    assert kronecker_share(torch.zeros(8, 8), 2, 2) == 1.0
