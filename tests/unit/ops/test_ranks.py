"""How many ranks each rule keeps, against its definition by loops; and which numbers a rule refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos import BadValueError
from lycoris_algos.ops.ranks import RankKind, RankRule, choose, ranked_svd

spectra = st.lists(st.floats(0.01, 100), min_size=1, max_size=8).map(lambda v: sorted(v)[::-1])


def fewest(parts: np.ndarray, share: float) -> int:
    """The fewest of ``parts``, from the first on, that make ``share`` of their sum."""
    return next(n for n in range(1, len(parts) + 1) if parts[:n].sum() >= share * parts.sum() * (1 - 1e-12))


def by_definition(s: np.ndarray, kind: RankKind, value: float) -> int:
    if kind is RankKind.SV_RATIO:
        return max(1, sum(float(v) > s[0] / value for v in s))
    if kind is RankKind.SV_CUMULATIVE:
        return fewest(s, value)
    return fewest(s**2, value**2 if kind is RankKind.SV_FRO else value)


@given(spectra, st.floats(0.01, 1))
def test_shares_keep_the_fewest_that_reach_them(spectrum: list[float], share: float) -> None:
    s = np.array(spectrum)
    values = torch.from_numpy(s)
    for kind in (RankKind.ENERGY, RankKind.SV_FRO, RankKind.SV_CUMULATIVE):
        assert choose(values, RankRule(kind, share)) == by_definition(s, kind, share)
    ratio = RankRule(RankKind.SV_RATIO, 1 / share)
    assert choose(values, ratio) == by_definition(s, ratio.kind, ratio.value)


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (RankKind.ENERGY, 0.5, 1),  # 16 of 30 is more than half
        (RankKind.ENERGY, 25 / 30, 2),  # just reached
        (RankKind.ENERGY, 1.0, 4),
        (RankKind.SV_FRO, 1.0, 4),
        (RankKind.SV_FRO, (25 / 30) ** 0.5, 2),
        (RankKind.SV_CUMULATIVE, 0.7, 2),
        (RankKind.SV_CUMULATIVE, 0.71, 3),
        (RankKind.SV_RATIO, 2.0, 2),  # 2 is not above 4/2
        (RankKind.SV_RATIO, 2.01, 3),
        (RankKind.SV_RATIO, 1.0, 1),  # none is above the largest, and one is kept
        (RankKind.FIXED, 3, 3),
        (RankKind.FIXED, 9, 4),
        (RankKind.BUDGET, 2, 2),
        (RankKind.BUDGET, 9, 4),
        (RankKind.EXACT, 0, 4),
    ],
)
def test_at_the_edges_of_a_rule(kind: RankKind, value: float, wanted: int) -> None:
    assert choose(torch.tensor([4.0, 3.0, 2.0, 1.0]), RankRule(kind, value)) == wanted


def test_exactly_is_all_above_what_rounding_leaves() -> None:
    assert choose(torch.tensor([2.0, 3e-7, 1e-7]), RankRule()) == 2
    assert choose(torch.tensor([2.0, 0.0, 0.0]), RankRule()) == 1


@pytest.mark.parametrize("kind", RankKind)
def test_of_nothing_one_rank_is_kept(kind: RankKind) -> None:
    for values in (torch.zeros(3), torch.zeros(0)):
        assert choose(values, RankRule(kind, 2)) == 1


@pytest.mark.parametrize("shape", [None, (8, 4), (8, 4, 1, 1), (8, 4, 3), (8, 4, 1, 3)], ids=str)
def test_the_rule_for_one_weight(shape: tuple[int, ...] | None) -> None:
    large = shape is not None and max(shape[2:], default=1) > 1
    energy, fixed = RankKind.ENERGY, RankKind.FIXED
    assert RankRule(energy, 0.9, 6, 3).of(shape) == RankRule(energy, 0.9, 3 if large else 6)
    assert RankRule(energy, 0.9, 0, 3).of(shape) == RankRule(energy, 0.9, 3 if large else 0)
    assert RankRule(energy, 0.9, 6).of(shape) == RankRule(energy, 0.9, 6)
    assert RankRule(fixed, 5, convolution=2).of(shape) == RankRule(fixed, 2 if large else 5)
    assert RankRule(fixed, 5).of(shape) == RankRule(fixed, 5)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (RankKind.EXACT, (0, -1, 2.5), ()),
        (RankKind.FIXED, (1, 64), (0, -1, 0.5, 1.5)),
        (RankKind.ENERGY, (1, 0.5), (0, -0.5, 1.01)),
        (RankKind.SV_FRO, (1, 0.5), (0, 1.01)),
        (RankKind.SV_CUMULATIVE, (1, 0.5), (0, 1.01)),
        (RankKind.SV_RATIO, (1, 50), (0.99, 0)),
        (RankKind.BUDGET, (0.001, 500), (0, -1)),
        (RankKind.THRESHOLD, (0, 0.1, 5), (-0.1,)),
        (RankKind.NOISE_FLOOR, (0, 1), ()),
    ],
)
def test_numbers_that_a_rule_can_use(kind: RankKind, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    for value in good:
        RankRule(kind, value).check()
    for value in bad:
        with pytest.raises(BadValueError, match="must"):
            RankRule(kind, value).check()


# ---- rules of extraction --------------------------------------------------------------------------------


def with_values(rows: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    u = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64))[0]
    return ((u * values.double()) @ v.T).float()


@given(spectra, st.floats(0, 100))
def test_a_threshold_is_what_is_above(spectrum: list[float], threshold: float) -> None:
    values = torch.tensor(spectrum, dtype=torch.float64)
    rule = RankRule(RankKind.THRESHOLD, threshold)
    assert choose(values, rule) == max(1, sum(value > threshold for value in spectrum))


@pytest.mark.parametrize("size", [(400, 400), (400, 200), (100, 400)], ids=str)
@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("noise", [1e-4, 0.02])
def test_the_noise_floor_finds_the_rank_below_the_noise(
    size: tuple[int, int], rank: int, noise: float
) -> None:
    planted = with_values(*size, torch.linspace(2.0, 1.0, rank))
    matrix = planted + noise * torch.randn(size)
    assert ranked_svd(matrix, RankRule(RankKind.NOISE_FLOOR))[1].numel() == rank


def test_the_noise_floor_without_noise_keeps_what_is_there() -> None:
    matrix = with_values(64, 48, torch.tensor([3.0, 2.0, 1.0]))
    assert ranked_svd(matrix, RankRule(RankKind.NOISE_FLOOR))[1].numel() == 3


def test_the_threshold_of_gavish_and_donoho() -> None:
    """ω(1) = 2.858, ω(0.5) = 2.1711 (their table), times the median."""
    values = torch.linspace(10, 0.1, 101, dtype=torch.float64)
    for size, omega in (((101, 101), 2.858), ((101, 202), 2.1711)):
        kept = choose(values, RankRule(RankKind.NOISE_FLOOR), size)
        assert kept == max(1, int((values > omega * values.median()).sum()))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RankKind.ENERGY, 0.5),
        (RankKind.ENERGY, 0.9),
        (RankKind.ENERGY, 0.9999),
        (RankKind.SV_FRO, 0.9),
        (RankKind.SV_RATIO, 20),
        (RankKind.SV_RATIO, 300),
        (RankKind.THRESHOLD, 0.05),
        (RankKind.THRESHOLD, 0.001),
        (RankKind.SV_CUMULATIVE, 0.7),
        (RankKind.FIXED, 12),
    ],
)
@pytest.mark.parametrize("size", [(600, 700), (700, 600)], ids=str)
def test_a_sketch_that_grows_tells_what_all_values_tell(
    size: tuple[int, int], kind: RankKind, value: float
) -> None:
    values = torch.logspace(0, -4, 600)
    matrix = with_values(*size, values)
    rule = RankRule(kind, value)
    wanted = choose(values, rule, size)
    u, s, vh = ranked_svd(matrix, rule)
    # Of an energy a sketch knows a little less than there is.
    assert wanted <= s.numel() <= wanted + (kind in (RankKind.ENERGY, RankKind.SV_FRO))
    lost = float((matrix - (u * s) @ vh).double().norm())
    assert lost <= 1.01 * float(values.double()[wanted:].norm()) + 1e-5


def test_a_cap_ends_the_growing() -> None:
    matrix = with_values(600, 700, torch.logspace(0, -1, 600))
    assert ranked_svd(matrix, RankRule(RankKind.ENERGY, 0.99, most=30))[1].numel() == 30
