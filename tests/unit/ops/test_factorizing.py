"""Truncated decompositions against numpy's full ones, and fits against what they must find or improve."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lycoris_algos.ops.hadamard import fit_hadamard, khatri_rao
from lycoris_algos.ops.kronecker import kron_factors, nearest_kronecker
from lycoris_algos.ops.lowrank import (
    best_factors,
    gram_spectrum,
    gram_svd,
    leading_svd,
    product_inner,
    product_svd,
    range_svd,
)

SHAPES = [(40, 30), (30, 40), (8, 100), (100, 8)]
SPECTRA = {
    "flat": lambda n: torch.ones(n) + torch.rand(n) * 0.01,
    "steep": lambda n: torch.logspace(0, -6, n),
    "slow": lambda n: 1 / (1 + torch.arange(n)).float().sqrt(),
}


def with_spectrum(shape: tuple[int, int], values: Tensor) -> Tensor:
    u = torch.linalg.qr(torch.randn(shape[0], len(values), dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(shape[1], len(values), dtype=torch.float64))[0]
    return ((u * values.double()) @ v.T).float()


def rebuilt(u: Tensor, s: Tensor, vh: Tensor) -> np.ndarray:
    return ((u * s).double() @ vh.double()).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [3, 12, 60])
def test_of_a_product(shape: tuple[int, int], rank: int) -> None:
    up, down = torch.randn(shape[0], rank), torch.randn(rank, shape[1])
    u, s, vh = product_svd(up, down)
    whole = (up.double() @ down.double()).numpy()
    wanted = np.linalg.svd(whole, compute_uv=False)[: len(s)]
    assert np.allclose(s.numpy(), wanted, atol=1e-5 * wanted[0])
    assert np.allclose(rebuilt(u, s, vh), whole, atol=1e-5 * wanted[0])
    assert torch.allclose(u.T @ u, torch.eye(len(s)), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_best_factors_of_fewer_ranks(rank: int) -> None:
    up, down = torch.randn(20, 8), torch.randn(8, 15)
    whole = (up.double() @ down.double()).numpy()
    best_up, best_down = best_factors(up, down, rank)
    assert best_up.dtype == best_down.dtype == torch.float32
    assert best_up.shape == (20, rank)
    u, s, vh = np.linalg.svd(whole, full_matrices=False)
    wanted = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert np.allclose((best_up.double() @ best_down.double()).numpy(), wanted, atol=1e-5 * s[0])
    # Shared evenly: both have the roots of the singular values as their lengths.
    assert np.allclose(best_up.norm(dim=0).numpy() ** 2, s[:rank], rtol=1e-5)
    assert np.allclose(best_down.norm(dim=1).numpy() ** 2, s[:rank], rtol=1e-5)


@pytest.mark.parametrize("rank", [8, 9])
def test_as_many_ranks_as_there_are_stay_as_they_are(rank: int) -> None:
    up, down = torch.randn(20, 8), torch.randn(8, 15)
    assert best_factors(up, down, rank) == (up, down)


def test_inner_products_of_factors() -> None:
    first = (torch.randn(20, 3), torch.randn(3, 15))
    second = (torch.randn(20, 5), torch.randn(5, 15))
    wanted = ((first[0].double() @ first[1].double()) * (second[0].double() @ second[1].double())).sum()
    assert abs(product_inner(first, second) - float(wanted)) < 1e-9 * abs(float(wanted)) + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_of_a_dense_matrix_by_its_gram_matrix(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    wanted = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    assert np.allclose(gram_spectrum(matrix).numpy(), wanted, atol=1e-7 * wanted[0])
    for rank in (1, 5, min(shape)):
        u, s, vh = gram_svd(matrix, rank)
        assert np.allclose(s.numpy(), wanted[:rank], rtol=1e-5)
        error = np.linalg.norm(matrix.double().numpy() - rebuilt(u, s, vh))
        best = np.linalg.norm(wanted[rank:])
        assert abs(error - best) < 1e-5 * wanted[0]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_a_sketch_is_within_half_a_percent_of_the_best(spectrum: str, rank: int) -> None:
    values = SPECTRA[spectrum](300)
    matrix = with_spectrum((400, 300), values)
    u, s, vh = range_svd(matrix, rank)
    error = np.linalg.norm(matrix.double().numpy() - rebuilt(u, s, vh))
    best = float(values.double()[rank:].square().sum().sqrt())
    assert error <= 1.005 * best + 1e-5
    exact = values.double().sort(descending=True).values
    assert (s.double() <= exact[:rank] * (1 + 1e-5)).all()
    again = range_svd(matrix, rank)
    assert all(torch.equal(a, b) for a, b in zip((u, s, vh), again, strict=True))


def test_the_way_is_chosen_by_size_and_gives_the_same() -> None:
    matrix = with_spectrum((300, 320), SPECTRA["steep"](300))
    few, exact = leading_svd(matrix, 4), gram_svd(matrix, 4)
    assert torch.allclose(few[1], exact[1], rtol=1e-4)


# ---- Kronecker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (1, 1), (2, 8), (24, 16)])
def test_the_nearest_kronecker_product(rows: int, columns: int) -> None:
    a, b = torch.randn(rows, columns), torch.randn(24 // rows, 16 // columns)
    found = nearest_kronecker(torch.kron(a, b), rows, columns)
    assert torch.allclose(torch.kron(*found), torch.kron(a, b), atol=1e-5)
    # Of a general matrix: the error that Van Loan and Pitsianis give.
    matrix = torch.randn(24, 16)
    first, second = nearest_kronecker(matrix, rows, columns)
    blocks = matrix.reshape(rows, 24 // rows, columns, 16 // columns).permute(0, 2, 1, 3)
    s = np.linalg.svd(blocks.reshape(rows * columns, -1).double().numpy(), compute_uv=False)
    error = float((matrix - torch.kron(first.contiguous(), second.contiguous())).norm())
    assert abs(error - np.linalg.norm(s[1:])) < 1e-4


def test_factors_of_a_kronecker_product_have_its_rank() -> None:
    a = torch.randn(6, 2) @ torch.randn(2, 5)
    b = torch.randn(4, 3)
    up, down = kron_factors(a, b)
    assert up.shape[1] == 6
    assert torch.allclose(up @ down, torch.kron(a, b), atol=1e-5)
    pair = (torch.randn(4, 2), torch.randn(2, 3))
    up, down = kron_factors(a, pair)
    assert up.shape[1] == 4
    assert torch.allclose(up @ down, torch.kron(a, pair[0] @ pair[1]), atol=1e-5)


# ---- Hadamard -------------------------------------------------------------------------------------------


def hadamard_error(matrix: Tensor, factors: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    a1, b1, a2, b2 = factors
    return float((matrix - (a1 @ b1) * (a2 @ b2)).square().sum() / matrix.square().sum())


def test_khatri_rao_is_the_elementwise_product() -> None:
    a1, b1, a2, b2 = torch.randn(9, 3), torch.randn(3, 7), torch.randn(9, 2), torch.randn(2, 7)
    up, down = khatri_rao(a1, b1, a2, b2)
    assert up.shape == (9, 6)
    assert torch.allclose(up @ down, (a1 @ b1) * (a2 @ b2), atol=1e-5)


def balanced(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * np.sqrt(s[:rank]), np.sqrt(s[:rank, None]) * vh[:rank]


def least_squares(target: np.ndarray, mask: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The a that makes |target − (a·right) ⊙ mask| least, one row at a time."""
    rows = [np.linalg.lstsq((right * m).T, t, rcond=None)[0] for t, m in zip(target, mask, strict=True)]
    return np.array(rows)


@pytest.mark.parametrize("shape", [(20, 13), (13, 20)])
@pytest.mark.parametrize("sweeps", [0, 1, 2, 3])
def test_a_sweep_of_the_fit_solves_for_each_factor_in_turn(shape: tuple[int, int], sweeps: int) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    m = matrix.numpy()
    (a1, b1), (a2, b2) = balanced(np.sqrt(abs(m)) * np.sign(m), 3), balanced(np.sqrt(abs(m)), 3)
    for _ in range(sweeps):
        a1 = least_squares(m, a2 @ b2, b1)
        b1 = least_squares(m.T, (a2 @ b2).T, a1.T).T
        a2 = least_squares(m, a1 @ b1, b2)
        b2 = least_squares(m.T, (a1 @ b1).T, a2.T).T
    wanted = (a1 @ b1) * (a2 @ b2)
    x1, y1, x2, y2 = (factor.numpy() for factor in fit_hadamard(matrix, 3, sweeps, starts=1))
    assert np.abs((x1 @ y1) * (x2 @ y2) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_every_sweep_of_the_fit_gains() -> None:
    matrix = torch.randn(30, 3) @ torch.randn(3, 20) * (torch.randn(30, 3) @ torch.randn(3, 20))
    errors = [hadamard_error(matrix, fit_hadamard(matrix, 3, sweeps)) for sweeps in (0, 1, 2, 5, 20, 60)]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]
    assert hadamard_error(matrix, fit_hadamard(matrix, 3)) < errors[2]
    first, again = fit_hadamard(matrix, 3), fit_hadamard(matrix, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_fit_of_rank_one_times_one_is_exact() -> None:
    matrix = torch.rand(12, 1) @ torch.rand(1, 9) + 0.0
    assert hadamard_error(matrix, fit_hadamard(matrix, 1)) < 1e-8
    assert hadamard_error(torch.ones(3, 4), fit_hadamard(torch.ones(3, 4), 7)) < 1e-8
    assert all(not f.isnan().any() for f in fit_hadamard(torch.zeros(3, 4), 2))
