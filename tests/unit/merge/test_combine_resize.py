"""Smaller adapters: by rank, energy, kohya's rules and a budget."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from combine_runs import LAYER, SAMPLES, adapters, base_of, combine, delta_of, linear, lokr
from oracles import to_numpy
from samples import Case

import lycoris_algos
from lycoris_algos import AdapterSet, BadValueError, LayerAdapter
from lycoris_algos.merge.combine import (
    RankKind,
    RankRule,
)
from lycoris_algos.network import StackEntry


def spectrum(layer: LayerAdapter) -> np.ndarray:
    return np.linalg.svd(to_numpy(layer.delta((64, 48)).double()), compute_uv=False)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("sv_ratio", 2.0), ("sv_ratio", 1.1), ("sv_fro", 0.9), ("sv_cumulative", 0.7), ("energy", 0.8)],
)
def test_resizing_follows_the_rule(kind: str, value: float) -> None:
    own = linear(12, 1)
    result = combine([StackEntry(own)], rank=RankRule(RankKind(kind), value)).adapters
    for name, layer in result.items():
        s = spectrum(own[name])
        if kind == "sv_ratio":
            wanted = max(1, int((s > s[0] / value).sum()))
        else:
            parts = s if kind == "sv_cumulative" else s**2
            share = value**2 if kind == "sv_fro" else value
            wanted = int(np.argmax(np.cumsum(parts) >= share * parts.sum())) + 1
        assert layer.algorithm is not None
        assert layer.algorithm.rank == wanted
        assert np.allclose(spectrum(layer)[:wanted], s[:wanted], rtol=1e-4)


def test_a_fixed_rank_is_the_best_one() -> None:
    own, other = linear(12, 1), linear(12, 2)
    combined = combine([StackEntry(own), StackEntry(other)], rank=RankRule(RankKind.FIXED, 8))
    for name, layer in combined.adapters.items():
        wanted = to_numpy((own[name].delta((64, 48)) + other[name].delta((64, 48))).double())
        s = np.linalg.svd(wanted, compute_uv=False)
        error = np.linalg.norm(wanted - to_numpy(layer.delta((64, 48)).double()))
        assert math.isclose(error, np.linalg.norm(s[8:]), rel_tol=1e-4)
    total = sum((spectrum_of_sum**2).sum() for spectrum_of_sum in _sums(own, other))
    kept = sum((spectrum_of_sum[:8] ** 2).sum() for spectrum_of_sum in _sums(own, other))
    assert math.isclose(combined.retained, kept / total, rel_tol=1e-5)


def _sums(own: AdapterSet, other: AdapterSet) -> list[np.ndarray]:
    sums = [to_numpy((own[n].delta((64, 48)) + other[n].delta((64, 48))).double()) for n in own]
    return [np.linalg.svd(matrix, compute_uv=False) for matrix in sums]


RESIZED = [case for case in SAMPLES if len(case.shape) > 1 and case.algos and case.shape[0] > 8]


@pytest.mark.parametrize("case", RESIZED, ids=lambda case: case.name)
@pytest.mark.parametrize("rule", [RankRule(RankKind.FIXED, 2), RankRule(RankKind.ENERGY, 0.7)], ids=str)
def test_every_algorithm_can_be_resized(case: Case, rule: RankRule) -> None:
    combined = combine([StackEntry(adapters(case.tensors))], base_of(case), rank=rule, dtype=torch.float32)
    layer = combined.adapters[LAYER]
    weight = next(case.targets()).weight()
    wanted = delta_of(adapters(case.tensors)[LAYER], weight)
    lost = np.linalg.norm(wanted - delta_of(layer, weight)) ** 2 / np.linalg.norm(wanted) ** 2
    if not case.bias_algos:
        assert math.isclose(1 - lost, combined.retained, abs_tol=1e-5)
    if rule.kind is RankKind.ENERGY and "lokr" not in case.algos and "loha" not in case.algos:
        assert 1 - lost >= 0.7 - 1e-6


@pytest.mark.parametrize("output", ["same", "lora", "lokr", "loha", "auto"])
@pytest.mark.parametrize("budget", [6_000, 12_000])
def test_the_budget_is_respected_and_used(output: str, budget: int, tmp_path: Path) -> None:
    sources = [StackEntry(linear(12, 1)), StackEntry(linear(12, 2))]
    rule = RankRule(RankKind.BUDGET, budget / 1e6)
    combined = combine(sources, output=output, rank=rule, dtype=torch.float16)
    path = lycoris_algos.save(combined.adapters, tmp_path / "x.safetensors")
    assert path.stat().st_size - _metadata_size(combined.adapters) <= budget
    if output in ("same", "lora"):
        assert path.stat().st_size > 0.6 * budget


def _metadata_size(own: AdapterSet) -> int:
    return len(json.dumps(dict(own.metadata), ensure_ascii=False).encode())


def test_a_budget_goes_where_the_energy_is() -> None:
    strong, weak = linear(12, 1, layers=1), linear(12, 1, layers=2)
    layers = {**strong, "lora_unet_block_1_to_q": weak["lora_unet_block_1_to_q"].multiplied(0.05)}
    own = AdapterSet(layers, name="uneven")  # type: ignore[arg-type]
    combined = combine([StackEntry(own)], rank=RankRule(RankKind.BUDGET, 0.004), dtype=torch.float16)
    ranks = {outcome.name: outcome.rank or 0 for outcome in combined.outcomes}
    assert ranks[LAYER] > 3 * ranks["lora_unet_block_1_to_q"]
    with pytest.raises(BadValueError, match="too small"):
        combine([StackEntry(own)], rank=RankRule(RankKind.BUDGET, 0.0001))


def test_fits_of_their_own_kind_are_found_again() -> None:
    draw = torch.Generator().manual_seed(3)
    kron = lokr(5)
    again = combine([StackEntry(kron, 0.5)], output="lokr", rank=RankRule(RankKind.FIXED, 16), factor=4)
    assert again.adapters[LAYER].algorithm.algo == "lokr"  # type: ignore[union-attr]
    assert again.retained > 1 - 1e-9
    hada = {
        f"hada_w{n}_{s}": torch.randn((64, 2) if s == "a" else (2, 48), generator=draw)
        for n in (1, 2)
        for s in "ab"
    }
    full = combine([StackEntry(adapters(hada))], output="full").adapters
    found = combine([StackEntry(full)], output="loha", rank=RankRule(RankKind.FIXED, 2))
    assert found.retained > 0.5
    assert "LoRAs of the same size would keep" in found.report()
