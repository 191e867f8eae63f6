"""Changes stored as an algorithm: how near, at what cost, and in the form that files of the weight have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import to_numpy
from torch import Tensor

from lycoris_algos import LayerAdapter
from lycoris_algos.adapters import Algorithm, Component, FitRequest, Fitted, algorithms, component, extras
from lycoris_algos.ops.ranks import RankKind, RankRule
from lycoris_algos.structures import Dense, LowRank

FITTED = [kind for kind in (*algorithms(), *extras()) if kind.can_be_fitted() and kind.algo != "full_bias"]
every_fitted = pytest.mark.parametrize("kind", FITTED, ids=lambda kind: kind.algo)
SHAPES = ((24, 16), (12, 10, 3), (12, 8, 3, 3), (6, 4, 3, 3, 3))
EXACT, FIXED, ENERGY, BUDGET = RankKind.EXACT, RankKind.FIXED, RankKind.ENERGY, RankKind.BUDGET


def change_of(shape: tuple[int, ...]) -> Dense:
    """A change of full rank, whose singular values differ a lot."""
    rows, columns = shape[0], math.prod(shape[1:])
    return Dense(torch.randn(rows, columns) * torch.logspace(0, -2, columns))


def fit(
    kind: type[Component],
    change: Dense | LowRank,
    shape: tuple[int, ...],
    rule: RankKind,
    value: float = 0,
    **more: object,
) -> Fitted:
    return kind.fit(FitRequest(change, shape, RankRule(rule, value), **more))  # type: ignore[arg-type]


def made(fitted: Fitted, shape: tuple[int, ...]) -> np.ndarray:
    """The change that is stored, as a matrix."""
    return to_numpy(fitted.stored.structure(shape).delta().double())


def numbers(fitted: Fitted) -> int:
    return sum(value.numel() for _, value in fitted.stored.tensors())


def singular(matrix: Tensor) -> np.ndarray:
    return np.linalg.svd(to_numpy(matrix.double()), compute_uv=False)


def test_what_changes_can_be_stored_as() -> None:
    assert {kind.algo for kind in FITTED} == {"lora", "loha", "lokr", "full"}
    with pytest.raises(TypeError, match="nothing is fitted to Diag-OFT"):
        component("oft").fit(None)  # type: ignore[attr-defined]


# ---- any of them ----------------------------------------------------------------------------------------


@every_fitted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_change_is_held_exactly_by_what_says_so(kind: type[Component], shape: tuple[int, ...]) -> None:
    change = change_of(shape)
    got = made(fit(kind, change, shape, EXACT), shape)
    error = np.abs(got - to_numpy(change.matrix)).max() / np.abs(got).max()
    assert (error < 1e-5) == kind.universal


@every_fitted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_stored_as_files_of_that_weight_are(kind: type[Component], shape: tuple[int, ...]) -> None:
    change = change_of(shape)
    size = change.matrix.shape
    stored = fit(kind, change, shape, EXACT).stored
    layer = LayerAdapter.from_tensors(stored.to_tensors())
    layer.fits(shape)
    assert layer.weight_shape == (None if kind.algo == "loha" else shape)
    if kind.algo == "lora":
        assert all(value.dim() == len(shape) for _, value in stored.tensors())
    flat = kind.fit(FitRequest(change, None, RankRule())).stored  # nothing tells the kernel
    assert LayerAdapter.from_tensors(flat.to_tensors()).weight_shape in (None, tuple(size))
    assert all(value.dim() == 2 and value.is_contiguous() for _, value in flat.tensors())


@every_fitted
def test_all_that_is_stored_is_real_and_contiguous(kind: type[Component]) -> None:
    for rule, value in ((EXACT, 0), (FIXED, 3), (BUDGET, 2), (ENERGY, 0.6)):
        fitted = fit(kind, change_of((24, 16)), (24, 16), rule, value)
        assert all(value.is_contiguous() for _, value in fitted.stored.tensors())
        if isinstance(fitted.stored, Algorithm):
            assert fitted.rank == fitted.stored.rank
            # α = r, so that the factors alone are the change.
            assert getattr(fitted.stored, "alpha", None) == float(fitted.rank or 1)


# ---- what a rank costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("rule", [FIXED, BUDGET])
@pytest.mark.parametrize("algo", ["lora", "loha"])
def test_a_rank_costs_as_many_numbers_as_it_is_said_to(algo: str, rule: RankKind, rank: int) -> None:
    kind = component(algo)
    fitted = fit(kind, change_of((24, 16)), (24, 16), rule, rank)
    assert fitted.rank == rank
    assert numbers(fitted) == rank * kind.numbers_per_rank(24, 16)  # type: ignore[attr-defined]


@pytest.mark.parametrize("more", [{}, {"factor": 4}, {"factor": -1}, {"factor": 2}], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_a_lokr_stays_within_its_budget(ranks: int, more: dict[str, int]) -> None:
    kind = component("lokr")
    fitted = fit(kind, change_of((24, 16)), (24, 16), BUDGET, ranks, **more)
    room = ranks * kind.numbers_per_rank(24, 16)  # type: ignore[attr-defined]
    assert numbers(fitted) <= room
    cost = 24 // fitted.stored.first_shape[0] + 16 // fitted.stored.first_shape[1]  # type: ignore[attr-defined]
    assert fitted.rank is None or numbers(fitted) > room - cost, "there was room for one more rank"


@pytest.mark.parametrize("algo", ["lokr", "loha"])
@pytest.mark.parametrize("ranks", [1, 3, 6])
def test_what_a_lora_of_as_many_numbers_would_keep(algo: str, ranks: int) -> None:
    change = change_of((24, 16))
    fitted = fit(component(algo), change, (24, 16), BUDGET, ranks)
    energies = singular(change.matrix) ** 2
    wanted = energies[: numbers(fitted) // (24 + 16)].sum() / energies.sum()
    assert fitted.lora_energy == pytest.approx(wanted, rel=1e-6)
    nothing = Dense(torch.zeros(24, 16))
    assert fit(component(algo), nothing, (24, 16), BUDGET, ranks).lora_energy == 1.0
    assert fit(component("lora"), change, (24, 16), BUDGET, ranks).lora_energy is None


# ---- LoRA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_factors", [False, True])
@pytest.mark.parametrize(("rule", "value"), [(FIXED, 3), (BUDGET, 3), (ENERGY, 0.8), (RankKind.SV_RATIO, 3)])
def test_a_lora_is_the_best_of_its_rank(rule: RankKind, value: float, of_factors: bool) -> None:
    change: Dense | LowRank = change_of((24, 16))
    if of_factors:
        change = LowRank(torch.randn(24, 9), torch.randn(9, 16), 0.5)
    fitted = fit(component("lora"), change, (24, 16), rule, value)
    assert fitted.rank is not None
    s = singular(change.delta())
    lost = np.linalg.norm(to_numpy(change.delta()) - made(fitted, (24, 16)))
    assert lost == pytest.approx(np.linalg.norm(s[fitted.rank :]), rel=1e-4)
    if rule is ENERGY:
        assert (s[: fitted.rank - 1] ** 2).sum() < value * (s**2).sum() <= (s[: fitted.rank] ** 2).sum()


@pytest.mark.parametrize(("rule", "value"), [(EXACT, 0), (FIXED, 4), (BUDGET, 6)])
def test_factors_of_few_enough_ranks_are_kept(rule: RankKind, value: float) -> None:
    change = LowRank(torch.randn(24, 4), torch.randn(4, 16))
    stored = fit(component("lora"), change, (24, 16), rule, value).stored
    assert [value.data_ptr() for _, value in stored.tensors()] == [
        change.up.data_ptr(),
        change.down.data_ptr(),
    ]


def test_more_factors_than_the_weight_has_ranks_become_fewer() -> None:
    change = LowRank(torch.randn(6, 9), torch.randn(9, 16))
    fitted = fit(component("lora"), change, (6, 16), EXACT)
    assert fitted.rank == 6
    assert np.allclose(made(fitted, (6, 16)), to_numpy(change.delta()), atol=1e-5)


# ---- LoHa -----------------------------------------------------------------------------------------------


def test_a_loha_for_other_rules_has_half_of_the_loras_ranks() -> None:
    change = change_of((24, 16))
    for rule, value in ((RankKind.SV_RATIO, 3.0), (RankKind.SV_CUMULATIVE, 0.7), (EXACT, 0.0)):
        lora = fit(component("lora"), change, (24, 16), rule, value)
        assert fit(component("loha"), change, (24, 16), rule, value).rank == (lora.rank or 0) // 2
    assert fit(component("loha"), change, (24, 16), RankKind.SV_RATIO, 1.0).rank == 1
    assert fit(component("loha"), change, (24, 16), FIXED, 99).rank == 16


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99, 1.0])
def test_a_loha_grows_until_it_keeps_its_share_or_is_too_large(share: float) -> None:
    change = Dense(torch.randn(40, 30))
    fitted = fit(component("loha"), change, (40, 30), ENERGY, share)
    rank, total = fitted.rank or 0, float(change.matrix.square().sum())

    def kept(ranks: int) -> float:
        own = fit(component("loha"), change, (40, 30), FIXED, ranks)
        return 1 - np.linalg.norm(to_numpy(change.matrix) - made(own, (40, 30))) ** 2 / total

    first = (fit(component("lora"), change, (40, 30), ENERGY, share).rank or 0) // 2
    assert kept(rank) >= share or 4 * rank * 70 > 40 * 30
    while rank > first:
        rank //= 2
        assert kept(rank) < share
        assert 4 * rank * 70 <= 40 * 30


# ---- LoKr -----------------------------------------------------------------------------------------------


def kronecker(matrix: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(w1, w2) of the nearest Kronecker product, by the definition of Van Loan and Pitsianis."""
    height, width = matrix.shape[0] // rows, matrix.shape[1] // columns
    blocks = [
        matrix[p * height : (p + 1) * height, q * width : (q + 1) * width].ravel()
        for p in range(rows)
        for q in range(columns)
    ]
    u, s, vh = np.linalg.svd(np.array(blocks), full_matrices=False)
    return (u[:, 0] * s[0]).reshape(rows, columns), vh[0].reshape(height, width)


def cut(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def divisor(size: int, factor: int) -> int:
    """As LyCORIS splits a dimension: the factor where it divides, else the largest divisor up to the root."""
    if factor > 0 and size % factor == 0:
        return factor
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    return max(d for d in range(1, limit + 1) if size % d == 0)


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("shape", [(24, 16), (36, 14), (23, 30), (12, 8, 3, 3)], ids=str)
def test_the_first_factor_has_the_size_that_lycoris_gives_it(shape: tuple[int, ...], factor: int) -> None:
    fitted = fit(component("lokr"), change_of(shape), shape, EXACT, factor=factor)
    wanted = divisor(shape[0], factor), divisor(shape[1], factor)
    assert fitted.stored.first_shape == wanted  # type: ignore[attr-defined]


@pytest.mark.parametrize("rank", [1, 2, 3, 16])
@pytest.mark.parametrize("size", [(4, 4), (2, 8), (12, 1)])
def test_a_lokr_like_another_keeps_its_size(size: tuple[int, int], rank: int) -> None:
    change = change_of((24, 16))
    like = LayerAdapter.from_tensors(
        {"lokr_w1": torch.randn(size), "lokr_w2": torch.randn(24 // size[0], 16 // size[1])}
    ).algorithm
    fitted = fit(component("lokr"), change, (24, 16), FIXED, rank, like=like, factor=2)
    assert fitted.stored.first_shape == size  # type: ignore[attr-defined]
    w1, w2 = kronecker(to_numpy(change.matrix), *size)
    smaller = rank * sum(w2.shape) < w2.size
    assert fitted.rank == (rank if smaller else None)
    wanted = np.kron(w1, cut(w2, rank) if smaller else w2)
    assert np.abs(made(fitted, (24, 16)) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("shape", [(24, 16), (36, 48), (8, 4, 3, 3)], ids=str)
def test_a_free_lokr_has_the_size_that_keeps_most(shape: tuple[int, ...], ranks: int) -> None:
    change = change_of(shape)
    matrix = to_numpy(change.matrix)
    rows, columns = matrix.shape
    allowed = ranks * (rows + columns)
    least = []
    for factor in (-1, 2, 4, 8, 16, 32):
        w1, w2 = kronecker(matrix, divisor(rows, factor), divisor(shape[1], factor))
        room = min(min(w2.shape), (allowed - w1.size) // sum(w2.shape))
        whole = w1.size + w2.size <= allowed
        if whole or room > 0:
            least.append(np.linalg.norm(matrix - np.kron(w1, w2 if whole else cut(w2, room))))
    fitted = fit(component("lokr"), change, shape, FIXED, ranks)
    assert np.linalg.norm(matrix - made(fitted, shape)) == pytest.approx(min(least), rel=1e-4)
    assert numbers(fitted) <= allowed


@pytest.mark.parametrize("size", [(16, 8), (2, 2), (4, 4), (8, 8), (16, 16), (32, 32)], ids=str)
def test_a_kronecker_product_is_found(size: tuple[int, int]) -> None:
    first, second = torch.randn(size), torch.randn(256 // size[0], 64 // size[1])
    ranks = math.ceil((first.numel() + second.numel()) / (256 + 64))
    change = Dense(torch.kron(first, second))
    fitted = fit(component("lokr"), change, (256, 64), BUDGET, ranks)
    assert fitted.stored.first_shape == size  # type: ignore[attr-defined]
    assert np.allclose(made(fitted, (256, 64)), to_numpy(change.matrix), atol=1e-4)


def test_the_smallest_lokr_where_not_even_that_fits() -> None:
    fitted = fit(component("lokr"), change_of((23, 29)), (23, 29), FIXED, 1)  # prime: a first factor of one
    assert numbers(fitted) == 1 + 23 + 29
    assert fitted.rank == 1
