"""Signs that oppose each other, and what rounding leaves of a change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from laws import every_target, made
from oracles import round_once, to_numpy
from samples import Target
from torch import Tensor

from lycoris_algos.deltas import opposed, survival
from lycoris_algos.deltas.sampled import ROWS
from lycoris_algos.ops.rounding import STOCHASTIC, generator_for, moved, stochastic
from lycoris_algos.structures import Dense, LowRank

DTYPES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@every_target
def test_signs_that_oppose_each_other(target: Target) -> None:
    structure, matrix, expected = made(target)
    weight = matrix if structure.needs_weight else None
    other = Dense(draw(*matrix.shape).double())
    noise = to_numpy(other.matrix)
    common = np.minimum(np.abs(expected), np.abs(noise))
    if not common.any():
        assert opposed(structure, other, weight) is None
        return
    wanted = (common * (expected * noise < 0)).sum() / common.sum()
    assert opposed(structure, other, weight) == pytest.approx(wanted, abs=1e-9)
    assert opposed(structure, structure, weight) == 0.0


def test_a_change_opposes_its_opposite() -> None:
    change = LowRank(draw(30, 2), draw(2, 20))
    assert opposed(change, LowRank(change.up, change.down, -3.0)) == 1.0
    assert opposed(change, Dense(torch.zeros(30, 20))) is None


def test_large_weights_are_asked_by_parts() -> None:
    tall = 20 * ROWS
    first, second = LowRank(draw(tall, 2), draw(2, 10)), Dense(draw(tall, 10, seed=1))
    whole = [change.delta().numpy() for change in (first, second)]
    common = np.minimum(*np.abs(whole))
    wanted = (common * (whole[0] * whole[1] < 0)).sum() / common.sum()
    assert opposed(first, second) == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_rounding_does(dtype: torch.dtype) -> None:
    stored = torch.cat((draw(4000), 1e-6 * draw(500, seed=1), torch.tensor([0.0, 1.0, -1.0, 2.0])))
    stored = stored.to(dtype).float()
    change = torch.cat([draw(len(stored) // 4, seed=n) * 10.0**-n for n in range(4)])
    rounded, chance = moved(stored, change, dtype)
    assert torch.equal(rounded, (stored + change).to(dtype).float())
    nearest = round_once(to_numpy((stored + change).double()), dtype)
    finite = np.abs(nearest) <= torch.finfo(dtype).max
    assert np.array_equal(to_numpy(rounded)[finite], nearest[finite])
    assert float(chance.min()) >= 0.0
    assert float(chance.max()) <= 1.0
    away = rounded != stored
    assert (chance[away] >= 0.5 - 1e-6).all()  # the nearest is the likeliest
    assert (chance[~away] <= 0.5 + 1e-6).all()
    assert not moved(stored, torch.zeros_like(stored), dtype)[1].any()


@pytest.mark.parametrize("dtype", sorted(STOCHASTIC, key=str), ids=str)
def test_the_chance_is_that_of_rounding_at_random(dtype: torch.dtype) -> None:
    stored = draw(2000).to(dtype).float()
    change = 0.03 * draw(2000, seed=1)
    tries = 300
    generator = generator_for(0, "x")
    wanted = stored + change
    hits = sum((stochastic(wanted, dtype, generator).float() != stored).double() for _ in range(tries))
    chance = moved(stored, change, dtype)[1]
    assert float((hits / tries - chance).abs().max()) < 5 * 0.5 / tries**0.5
    assert float(hits.mean() / tries) == pytest.approx(float(chance.mean()), abs=0.005)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_survives(dtype: torch.dtype) -> None:
    weight = draw(32, 24)
    change = Dense(0.02 * draw(32, 24, seed=1))
    got = survival(change, 0.5, weight, dtype)
    assert got is not None
    stored = weight.to(dtype).float()
    after = (stored + 0.5 * change.matrix).to(dtype).float()
    assert got.nearest == pytest.approx(float((after != stored).double().mean()))
    off = (after - stored - 0.5 * change.matrix).norm() / (0.5 * change.matrix).norm()
    assert got.error == pytest.approx(float(off), rel=1e-5)
    assert 0.0 < got.stochastic <= 1.0


def test_a_change_far_above_the_steps_survives_whole_and_one_far_below_not_at_all() -> None:
    weight = torch.ones(8, 8)
    large, tiny = Dense(torch.full((8, 8), 0.5)), Dense(torch.full((8, 8), 2.0**-10))
    got = survival(large, 1.0, weight, torch.float8_e4m3fn)
    assert got is not None
    assert (got.nearest, got.stochastic, got.error) == (1.0, 1.0, 0.0)
    got = survival(tiny, 1.0, weight, torch.float8_e4m3fn)
    assert got is not None
    assert (got.nearest, got.error) == (0.0, 1.0)
    assert got.stochastic == pytest.approx(2.0**-10 / 2.0**-3)  # the step above 1
    assert survival(Dense(torch.zeros(8, 8)), 1.0, weight, torch.float16) is None
