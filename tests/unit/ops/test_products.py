"""Thin products, shared out by rows or not: the product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from row_blocks import set_blocks

from lycoris_algos.ops.products import addmm_rows_, mm_rows


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_a_product_by_threads_is_the_product(n: int, k: int, c: int, threads: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    a = torch.randn((k, n), generator=generator).T if turned else torch.randn((n, k), generator=generator)
    b = torch.randn((k, c), generator=generator)
    out = torch.full((n, c), torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        set_blocks(patch, 1, threads)
        found = mm_rows(a, b, out)
    assert found.data_ptr() == out.data_ptr()
    torch.testing.assert_close(found, a @ b)
    with pytest.MonkeyPatch.context() as patch:
        set_blocks(patch, 1, threads)
        addmm_rows_(out, a, b, -0.5)
    torch.testing.assert_close(out, 0.5 * (a @ b))
