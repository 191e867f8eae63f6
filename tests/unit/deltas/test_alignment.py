"""How two changes lie to each other, against dense float64 and on changes made to be so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from laws import every_target, made
from oracles import to_numpy
from samples import Target
from torch import Tensor

from lycoris_algos.deltas import alignment, effective_rank
from lycoris_algos.structures import Dense, Kronecker, LowRank, Structure, Sum


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_alignment(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(⟨A, B⟩, share of outputs, share of inputs), by definition."""

    def share(one: np.ndarray, other: np.ndarray) -> float:
        if one.shape[0] > one.shape[1]:
            grams = [one.T @ one, other.T @ other, one.T @ other]
        else:  # the same by the trace's rule, for the samples that are 40000 wide
            grams = [one @ one.T, other @ other.T]
        norms = np.linalg.norm(grams[0]) * np.linalg.norm(grams[1])
        inner = np.linalg.norm(grams[2]) ** 2 if len(grams) == 3 else (grams[0] * grams[1]).sum()
        return float(inner / norms) if norms else 0.0

    return float((a * b).sum()), share(a, b), share(a.T, b.T)


@every_target
def test_against_the_dense_changes(target: Target) -> None:
    structure, matrix, expected = made(target)
    weight = matrix if structure.needs_weight else None
    thin = LowRank(draw(matrix.shape[0], 1), draw(1, matrix.shape[1], seed=1), 0.5)
    for other in (thin, Dense(draw(*matrix.shape, seed=2)), Sum((thin, structure), (2.0, -1.0)), structure):
        wanted = dense_alignment(expected, to_numpy(other.delta(weight)))
        for got in (alignment(structure, other, weight), alignment(other, structure, weight)):
            assert (got.outputs, got.inputs) == pytest.approx(wanted[1:], abs=1e-8)
            assert got.inner == pytest.approx(wanted[0], rel=1e-8, abs=1e-8)


def test_kronecker_products_of_other_cuts_are_compared_as_well() -> None:
    first = Kronecker(Dense(draw(2, 3)), Dense(draw(6, 4)), 0.5)
    for other in (
        Kronecker(Dense(draw(2, 3, seed=1)), LowRank(draw(6, 2), draw(2, 4)), -2.0),
        Kronecker(Dense(draw(3, 4, seed=2)), Dense(draw(4, 3, seed=3))),
    ):
        wanted = dense_alignment(to_numpy(first.delta()), to_numpy(other.delta()))
        got = alignment(first, other)
        assert (got.inner, got.outputs, got.inputs) == pytest.approx(wanted, rel=1e-9)


def test_no_delta_is_formed_where_factors_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Structure, weight: Tensor | None = None) -> Tensor:
        raise AssertionError("a whole change was formed")

    thin = [LowRank(draw(40, 3, seed=n), draw(3, 50, seed=n)) for n in range(2)]
    products = [Kronecker(Dense(draw(4, 5, seed=n)), Dense(draw(10, 10, seed=n))) for n in range(2)]
    monkeypatch.setattr(LowRank, "delta", never)
    monkeypatch.setattr(Kronecker, "delta", never)
    alignment(*thin)
    alignment(*products)


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.01, 300.0], ids=["same", "opposite", "smaller", "larger"])
def test_changes_that_differ_by_a_factor_share_everything(factor: float) -> None:
    change = LowRank(draw(12, 2), draw(2, 20, seed=1))
    got = alignment(change, LowRank(change.up, change.down, factor))
    assert (got.outputs, got.inputs) == pytest.approx((1, 1))
    assert got.inner == pytest.approx(factor * change.norm() ** 2)


def test_spaces_at_right_angles_share_nothing() -> None:
    basis = torch.linalg.qr(draw(20, 20))[0]
    down = draw(2, 30, seed=1)
    got = alignment(LowRank(basis[:, :2], down), LowRank(basis[:, 2:4], down))
    assert got.outputs == pytest.approx(0, abs=1e-12)
    assert got.inputs == pytest.approx(1)  # they write elsewhere, but read the same
    assert got.inner == pytest.approx(0, abs=1e-10)


def test_nothing_shares_nothing() -> None:
    nothing, change = Dense(torch.zeros(4, 5)), Dense(torch.ones(4, 5))
    got = alignment(nothing, change)
    assert (got.inner, got.outputs, got.inputs) == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "rank"), [([2.0] * 5, 5.0), ([3.0, 0.0], 1.0), ([0.0, 0.0], 0.0), ([1.0, 1e-9], 1.0)]
)
def test_the_effective_rank(values: list[float], rank: float) -> None:
    assert effective_rank(torch.tensor(values)) == pytest.approx(rank, abs=1e-6)


def test_the_effective_rank_is_that_of_roy_and_vetterli() -> None:
    values = [0.5, 0.3, 0.2]
    entropy = -sum(p * math.log(p) for p in values)
    assert effective_rank(torch.tensor(values) * 7) == pytest.approx(math.exp(entropy), rel=1e-6)
