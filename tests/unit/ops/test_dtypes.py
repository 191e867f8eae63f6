"""Which dtype the maths runs in."""

from __future__ import annotations

import pytest
import torch

from lycoris_algos.ops.dtypes import common_dtype, compute_dtype, to_compute

NARROW = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_everything_narrow_is_computed_in_float32(dtype: torch.dtype) -> None:
    assert compute_dtype(dtype) == torch.float32
    assert compute_dtype(torch.float16, dtype) == torch.float32
    assert compute_dtype(dtype, torch.float64) == torch.float64


def test_float64_stays_and_nothing_at_all_is_float32() -> None:
    assert compute_dtype(torch.float64) == torch.float64
    assert compute_dtype() == torch.float32


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_casting_up_is_exact_and_not_done_for_nothing(dtype: torch.dtype) -> None:
    stored = torch.randn(5, 3).to(dtype)
    for wide in (torch.float32, torch.float64):
        got = to_compute(stored, torch.device("cpu"), wide)
        assert got.dtype == wide
        assert torch.equal(got.to(dtype).float(), stored.float())
        assert to_compute(got, torch.device("cpu"), wide) is got


@pytest.mark.parametrize("dtype", [*NARROW, torch.float64], ids=str)
def test_what_is_joined_keeps_its_dtype_where_all_have_the_same(dtype: torch.dtype) -> None:
    own = torch.zeros(2).to(dtype)
    assert common_dtype([own]) == common_dtype([own, own.clone()]) == dtype
    assert common_dtype([own, torch.zeros(1, dtype=torch.float64)]) == torch.float64
    if dtype != torch.float32:
        assert common_dtype([torch.zeros(1), own]) == compute_dtype(dtype)
