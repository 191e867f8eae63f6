"""Weights as matrices of rows, and the blocks that they are worked on in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos.ops import rows
from lycoris_algos.ops.rows import matrix_view, row_blocks, rows_per_block

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1)),
        ((5,), (5, 1)),
        ((5, 3), (5, 3)),
        ((5, 3, 2), (5, 6)),
        ((5, 3, 2, 4), (5, 24)),
        ((5, 3, 2, 4, 2), (5, 48)),
        ((0, 3), (0, 0)),
        ((3, 0), (3, 0)),
    ],
    ids=str,
)
def test_a_matrix_shares_memory(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    weight = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    matrix = matrix_view(weight)
    assert matrix is not None
    assert matrix.shape == expected
    assert torch.equal(matrix.flatten(), weight.flatten())
    matrix.add_(1)
    assert torch.equal(matrix.flatten(), weight.flatten())


def test_strides_that_allow_a_view() -> None:
    for view in (
        torch.zeros(4, 6).T,
        torch.zeros(9, 6)[2:6],
        torch.zeros(4, 9)[:, 2:5],
        torch.zeros(4, 9, 3, 3)[:, 2:5],
        torch.zeros(8, 3, 2)[::2],
    ):
        matrix = matrix_view(view)
        assert matrix is not None
        assert matrix.data_ptr() == view.data_ptr()
        matrix.fill_(1)
        assert view.eq(1).all()


def test_strides_that_do_not() -> None:
    assert matrix_view(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)) is None
    assert matrix_view(torch.zeros(4, 3, 2, 2)[..., :1, :]) is None
    assert matrix_view(torch.zeros(4, 2, 3).transpose(1, 2)) is None


@given(st.integers(0, 40), st.integers(1, 45))
def test_blocks_cover_every_row_once_in_order(count: int, step: int) -> None:
    found = list(row_blocks(count, step))
    assert [row for start, stop in found for row in range(start, stop)] == list(range(count))
    assert all(0 < stop - start <= step for start, stop in found)


@given(st.integers(0, 10_000), st.sampled_from((torch.float32, torch.float64)), st.integers(1, 1 << 22))
def test_a_block_fits_its_bound_or_is_one_row(columns: int, dtype: torch.dtype, bound: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_CPU_BLOCK", bound)
        count = rows_per_block(columns, dtype, CPU)
    assert count >= 1
    assert count == 1 or count * columns * dtype.itemsize <= bound
    assert (count + 1) * max(1, columns) * dtype.itemsize > bound, "one row more would fit as well"


def test_a_gpu_gets_larger_blocks() -> None:
    assert rows_per_block(4096, torch.float32, torch.device("cuda")) > rows_per_block(
        4096, torch.float32, CPU
    )
