"""Random rounding: unbiased, to neighbours only, and the same everywhere."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from lycoris_algos.ops.dtypes import STORED_DTYPES
from lycoris_algos.ops.rounding import (
    STOCHASTIC,
    Extremes,
    count_broken,
    generator_for,
    nearest,
    overflow_threshold,
    stochastic,
)

DTYPES = sorted(STOCHASTIC, key=str)


def numbers(dtype: torch.dtype) -> torch.Tensor:
    """Every finite number of ``dtype``, in order."""
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return every[every.isfinite()].unique()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_fits_is_kept(dtype: torch.dtype) -> None:
    every = numbers(dtype)
    assert torch.equal(stochastic(every, dtype, generator_for(0, "x")).float(), every)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0173, -0.0173, 1.37e-3, -5e-4, 0.3, 100.3, -440.0, 2.0**-10, 3e-5])
def test_the_mean_is_the_number_and_only_neighbours_occur(dtype: torch.dtype, value: float) -> None:
    count = 1 << 18
    rounded = stochastic(torch.full((count,), value), dtype, generator_for(1, "x")).double()
    every = numbers(dtype).double()
    above = every[every >= value].min().item()
    below = every[every <= value].max().item()
    assert set(rounded.unique().tolist()) <= {below, above}
    gap = above - below
    # Five standard deviations of the mean of a coin with this share of heads, and the step of the noise.
    share = (value - below) / gap if gap else 0.0
    limit = gap * (5 * (share * (1 - share) / count) ** 0.5 + 2.0**-16)
    assert abs(float(rounded.mean()) - value) <= limit + 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_beyond_the_largest_become_it(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest * 1.01, -1e30, torch.inf, -torch.inf, torch.nan])
    rounded = stochastic(values, dtype, generator_for(0, "x")).float()
    assert rounded[:4].tolist() == [largest, -largest, largest, -largest]
    assert rounded[4].isnan()


def test_seed_and_name_decide_and_nothing_else() -> None:
    values = torch.linspace(-1, 1, 100_000)

    def digest(seed: int, name: str) -> str:
        rounded = stochastic(values, torch.float8_e4m3fn, generator_for(seed, name))
        return hashlib.sha256(rounded.view(torch.uint8).numpy().tobytes()).hexdigest()

    torch.manual_seed(5)
    first = digest(1, "a")
    torch.manual_seed(6)
    assert digest(1, "a") == first
    assert len({first, digest(2, "a"), digest(1, "b")}) == 3
    # The bits of any machine, forever: a checkpoint can be made again.
    assert first.startswith(FIRST)


def test_shapes_strides_and_dtypes() -> None:
    values = torch.randn(7, 5, 3)
    expected = stochastic(values, torch.float8_e5m2, generator_for(0, "x"))
    assert expected.shape == (7, 5, 3)
    turned = values.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    again = stochastic(turned, torch.float8_e5m2, generator_for(0, "x"))
    assert torch.equal(again.float(), expected.float())
    assert stochastic(torch.empty(0), torch.float8_e5m2, generator_for(0, "x")).numel() == 0
    assert stochastic(torch.tensor(0.5), torch.float8_e5m2, generator_for(0, "x")).shape == ()


#: How the digest above begins.
FIRST = "ae201c269f9c9e74"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e5m2])
def test_the_threshold_is_where_numbers_become_infinite(dtype: torch.dtype) -> None:
    threshold = overflow_threshold(dtype)
    below, at = torch.tensor([(torch.finfo(dtype).max + threshold) / 2, threshold], dtype=torch.float64)
    assert float(below.to(dtype)) == torch.finfo(dtype).max
    if dtype is not torch.float8_e5m2:  # PyTorch's versions differ in whether fp8 saturates
        assert at.to(dtype).isinf()


def test_the_threshold_of_e4m3() -> None:
    assert overflow_threshold(torch.float8_e4m3fn) == 464.0


def test_nothing_reaches_nowhere() -> None:
    extremes = Extremes()
    extremes.see(torch.empty(0, 3))
    assert extremes.largest == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -70000.0])
@pytest.mark.parametrize("place", [0, (1 << 15) + 7, 300_000])
def test_extremes_see_every_block(bad: float, place: int) -> None:
    values = torch.linspace(-1, 1, 300_001)
    seen = Extremes()
    nearest(values, torch.empty(300_001, dtype=torch.float16), seen)
    assert seen.largest == 1.0
    values[place] = bad
    extremes, others = Extremes(), Extremes()
    rounded = nearest(values, torch.empty(300_001, dtype=torch.float16), extremes)
    stochastic(values, torch.float8_e5m2, generator_for(0, "x"), others)
    assert torch.equal(rounded.nan_to_num(nan=7.0), values.half().nan_to_num(nan=7.0))
    for seen in (extremes, others):
        assert not seen.largest < overflow_threshold(torch.float16)


@pytest.mark.parametrize("dtype", STORED_DTYPES.values(), ids=str)
@pytest.mark.parametrize("broken", [[], [math.nan], [math.inf, -math.inf], [-math.inf, math.nan, math.nan]])
def test_broken_numbers_are_counted(dtype: torch.dtype, broken: list[float]) -> None:
    values = torch.tensor([[1.0, -2.0, 0.0], [4.0, *([0.5] * 2)]])
    values.view(-1)[: len(broken)] = torch.tensor(broken)
    stored = values.to(dtype)
    assert count_broken(stored) == int((~stored.float().isfinite()).sum())
    if dtype != torch.float8_e4m3fn:  # which has no infinity
        assert count_broken(stored) == len(broken)
    assert count_broken(values[:0].to(dtype)) == 0
