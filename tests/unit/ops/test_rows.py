"""Weights as matrices of rows, and the blocks that they are worked on in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from row_blocks import set_blocks

from lycoris_algos.ops.rows import block_rows, matrix_view, row_blocks, rows_per_block, stacked

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
        ((0, 3), (0, 3)),
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


@given(st.integers(0, 40), st.integers(1, 15), st.integers(1, 5))
def test_blocks_cover_every_row_once_in_order(count: int, units: int, unit: int) -> None:
    step = units * unit
    found = list(row_blocks(count, step, unit))
    assert [row for start, stop in found for row in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in found]
    assert all(0 < size <= step for size in sizes)
    assert all(size == sizes[0] and size % unit == 0 for size in sizes[:-1])


def test_two_blocks_are_dealt_with_at_once_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch, 4 * 10 * 8, threads=2)  # 16 rows of 10 numbers
    assert [block_rows(count, 10, torch.float32, CPU, 6) for count in (5, 32, 33)] == [5, 32, 12]
    assert block_rows(33, 10, torch.float32, CPU, 40) == 33, "a unit is never cut"
    cuda = torch.device("cuda")
    fitting = rows_per_block(10, torch.float32, cuda)
    assert block_rows(fitting, 10, torch.float32, cuda) == fitting
    assert block_rows(fitting + 1, 10, torch.float32, cuda) == fitting


def test_blocks_are_alike() -> None:
    assert list(row_blocks(640, 408)) == [(0, 320), (320, 640)]
    assert list(row_blocks(10, 4, 2)) == [(0, 4), (4, 8), (8, 10)]


@given(
    st.integers(0, 10_000),
    st.sampled_from((torch.float32, torch.float64)),
    st.integers(1, 1 << 22),
    st.integers(1, 5),
)
def test_a_block_is_as_many_rows_for_each_thread_as_fit_its_cache(
    columns: int, dtype: torch.dtype, size: int, threads: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        set_blocks(patch, size, threads)
        count = rows_per_block(columns, dtype, CPU)
    each, rest = divmod(count, threads)
    assert each >= 1
    assert rest == 0
    assert each == 1 or each * columns * dtype.itemsize <= size
    assert (each + 1) * max(1, columns) * dtype.itemsize > size, "one row more would fit as well"


def test_a_gpu_gets_larger_blocks() -> None:
    assert rows_per_block(4096, torch.float32, torch.device("cuda")) > rows_per_block(
        4096, torch.float32, CPU
    )


def test_pieces_in_order_are_one_weight() -> None:
    pieces = [torch.randn(rows, 5) for rows in (3, 1, 2)]
    assert torch.equal(stacked(pieces), torch.cat(pieces))
    assert stacked(tuple(pieces[:1])) is pieces[0]
