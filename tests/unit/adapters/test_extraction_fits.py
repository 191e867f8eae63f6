"""Fits for extraction: Tucker kernels, DoRA, the largest elements; and what the prices of fits promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lycoris_algos.adapters import Component, FitRequest, Fitted, LayerAdapter, component
from lycoris_algos.ops.ranks import RankKind, RankRule
from lycoris_algos.structures import Dense

FIXED = RankKind.FIXED


def request(matrix: Tensor, shape: tuple[int, ...], rank: int, **more: object) -> FitRequest:
    return FitRequest(Dense(matrix.reshape(shape[0], -1)), shape, RankRule(FIXED, rank), **more)  # type: ignore[arg-type]


def layer_of(fitted: Fitted) -> LayerAdapter:
    tensors = fitted.stored.to_tensors()
    if fitted.magnitude is not None:
        tensors |= fitted.magnitude.to_tensors()
    return LayerAdapter.from_tensors(tensors)


def lost(fitted: Fitted, wanted: Tensor, weight: Tensor | None = None) -> float:
    """Σ of the squared error."""
    layer = layer_of(fitted)
    got = layer.delta(wanted.shape if weight is None else weight.double())
    return float((wanted.double() - got.double()).square().sum())


# ---- Tucker ---------------------------------------------------------------------------------------------


def tucker(shape: tuple[int, ...], rank: int) -> Tensor:
    core = torch.randn(rank, rank, *shape[2:])
    inner = torch.einsum("rq...,qi->ri...", core, torch.randn(rank, shape[1]))
    return torch.einsum("or,ri...->oi...", torch.randn(shape[0], rank), inner)


@pytest.mark.parametrize("shape", [(24, 16, 3, 3), (12, 20, 3), (8, 8, 3, 1)], ids=str)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_tucker_kernel_is_found_again(shape: tuple[int, ...], rank: int) -> None:
    wanted = tucker(shape, rank)
    fitted = component("lora").fit(request(wanted, shape, rank, tucker=True))  # type: ignore[attr-defined]
    assert {"lora_mid.weight", "lora_up.weight", "lora_down.weight"} < fitted.stored.to_tensors().keys()
    assert fitted.rank == rank
    assert layer_of(fitted).weight_shape == shape
    assert lost(fitted, wanted) < 1e-8 * float(wanted.square().sum())


def test_a_tucker_fit_is_better_than_two_decompositions_in_a_row() -> None:
    """extract_locon decomposes the outputs, then the inputs of what is left."""
    shape, rank = (24, 20, 3, 3), 5
    wanted = torch.randn(shape) + 0.5 * tucker(shape, 8)
    u, s, vh = torch.linalg.svd(wanted.reshape(24, -1), full_matrices=False)
    inner = (torch.diag(s[:rank]) @ vh[:rank]).reshape(rank, 20, 3, 3).transpose(0, 1)
    left, values, right = torch.linalg.svd(inner.reshape(20, -1), full_matrices=False)
    cut = ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(20, rank, 3, 3).transpose(0, 1)
    theirs = float((wanted - (u[:, :rank] @ cut.reshape(rank, -1)).reshape(shape)).square().sum())
    fitted = component("lora").fit(request(wanted, shape, rank, tucker=True))  # type: ignore[attr-defined]
    assert lost(fitted, wanted) <= theirs


def test_no_tucker_kernel_without_a_kernel() -> None:
    for shape in ((24, 16), (24, 16, 1, 1)):
        fitted = component("lora").fit(request(torch.randn(shape), shape, 3, tucker=True))  # type: ignore[attr-defined]
        assert "lora_mid.weight" not in fitted.stored.to_tensors()


# ---- DoRA -----------------------------------------------------------------------------------------------


def planted_dora(shape: tuple[int, ...], rank: int, strength: float) -> tuple[Tensor, Tensor]:
    """(W, the change by a DoRA of it)."""
    weight = torch.randn(shape)
    columns = math.prod(shape[1:])
    change = 0.1 * torch.randn(shape[0], rank) @ torch.randn(rank, columns)
    combined = weight.reshape(shape[0], -1) + change
    lengths = combined.norm(dim=1) * (1 + strength * torch.randn(shape[0]))
    tuned = combined / combined.norm(dim=1, keepdim=True) * lengths[:, None]
    return weight, tuned.reshape(shape) - weight


@pytest.mark.parametrize("shape", [(48, 64), (32, 24, 3, 3)], ids=str)
@pytest.mark.parametrize("strength", [0.05, 0.2])
def test_a_dora_is_found_again_where_a_lora_is_not(shape: tuple[int, ...], strength: float) -> None:
    weight, wanted = planted_dora(shape, 4, strength)
    asked = request(wanted, shape, 4, weight=weight)
    fitted = component("dora").fit(asked)  # type: ignore[attr-defined]
    assert layer_of(fitted).magnitude is not None
    energy = float(wanted.square().sum())
    assert math.sqrt(lost(fitted, wanted, weight) / energy) < 1e-3
    assert lost(component("lora").fit(asked), wanted) > 0.05**2 * energy  # type: ignore[attr-defined]


# ---- the largest elements -------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.98])
def test_the_elements_that_extract_locon_would_keep(sparsity: float) -> None:
    residual = torch.randn(30, 40)
    kind = component("sparse")
    stored = kind.largest(residual, sparsity)  # type: ignore[attr-defined]
    bound = torch.quantile(residual.abs().double(), sparsity)
    wanted = residual.masked_fill(residual.abs() < bound, 0)
    got = LayerAdapter(extras=(stored,)).delta((30, 40))
    assert torch.equal(got, wanted)
    assert kind.largest(torch.zeros(3, 4), 0.5) is None  # type: ignore[attr-defined]


def test_positions_beyond_int16_are_stored_wide() -> None:
    residual = torch.zeros(2, 40000)
    residual[1, 39999] = 3.0
    stored = component("sparse").largest(residual, 0.999)  # type: ignore[attr-defined]
    layer = LayerAdapter.from_tensors({**stored.to_tensors(), "diff": torch.zeros(2, 40000)})
    assert torch.equal(layer.delta((2, 40000)), residual)


# ---- prices ---------------------------------------------------------------------------------------------


def changed(kind: str, shape: tuple[int, ...]) -> Tensor:
    if kind == "random":
        return torch.randn(shape)
    if kind == "tucker":
        return tucker(shape, 3) if len(shape) > 2 else torch.randn(shape[0], 3) @ torch.randn(3, shape[1])
    first = torch.randn(4, 4, *(1 for _ in shape[2:]))
    return torch.kron(first, torch.randn(shape[0] // 4, shape[1] // 4, *shape[2:]))


FORMS = [("lora", False), ("lora", True), ("lokr", False), ("full", False)]


@pytest.mark.parametrize("shape", [(32, 24), (16, 24, 3, 3)], ids=str)
@pytest.mark.parametrize("change", ["random", "tucker", "kronecker"])
@pytest.mark.parametrize(
    ("algo", "tucker"), [("lora", False), ("lora", True), ("lokr", False), ("full", False)]
)
def test_a_fit_keeps_what_its_price_promises_and_is_as_large(
    algo: str, tucker: bool, change: str, shape: tuple[int, ...]
) -> None:
    wanted = changed(change, shape)
    asked = request(wanted, shape, 1, tucker=tucker)
    kind: type[Component] = component(algo)  # type: ignore[assignment]
    prices = kind.prices(asked)
    assert prices
    for price in prices[:: max(1, len(prices) // 7)]:
        fitted = kind.fit(asked.priced(price))
        assert sum(value.numel() for _, value in fitted.stored.tensors()) == price.numbers
        promised = asked.energy - price.kept
        assert lost(fitted, wanted) <= promised + 1e-5 * asked.energy
    if (algo, change) == ("lokr", "kronecker"):
        assert any(
            price.kept > asked.energy * (1 - 1e-6) and price.numbers < wanted.numel() / 2 for price in prices
        )


def test_dora_is_priced_where_lengths_change_only() -> None:
    kind: type[Component] = component("dora")  # type: ignore[assignment]
    weight, wanted = planted_dora((48, 64), 4, 0.2)
    asked = request(wanted, (48, 64), 4, weight=weight)
    prices = kind.prices(asked)
    for price in prices[:12:3]:
        fitted = kind.fit(asked.priced(price))
        assert asked.energy - lost(fitted, wanted, weight) >= price.kept - 1e-5 * asked.energy
    flat = torch.randn(48, 64)
    flat -= weight * ((flat * weight).sum(1) / weight.square().sum(1))[:, None]
    assert kind.prices(request(flat, (48, 64), 4, weight=weight)) == []
    assert kind.prices(request(wanted, (48, 64), 4)) == []


def test_loha_is_priced_where_it_is_near() -> None:
    kind: type[Component] = component("loha")  # type: ignore[assignment]
    torch.manual_seed(1)
    halves = [torch.randn(96, 4) @ torch.randn(4, 80) for _ in range(2)]
    wanted = halves[0] * halves[1]
    asked = request(wanted, (96, 80), 1)
    lora = {price.numbers: price.kept for price in component("lora").prices(asked)}  # type: ignore[attr-defined]
    prices = kind.prices(asked)
    assert [price.sizes for price in prices] == [(2,), (4,), (8,), (16,)]
    assert prices[1].kept > 0.99 * asked.energy > lora[prices[1].numbers]
    plain = torch.randn(64, 3) @ torch.randn(3, 48)
    assert kind.prices(request(plain, (64, 48), 1)) == []
    assert kind.prices(request(torch.zeros(64, 48), (64, 48), 1)) == []
