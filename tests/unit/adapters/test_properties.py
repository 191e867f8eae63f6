"""The laws on shapes that nobody would write down, with the borders of row blocks anywhere in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import check_delta, check_rounded_once, expected_delta, same_bits, to_numpy, tolerance
from row_blocks import set_blocks
from samples import Case
from strategies import STRATEGIES, any_case, multipliers, weight_dtypes

from lycoris_algos import LayerAdapter, apply_
from lycoris_algos.adapters import algorithms

blocks = st.integers(1, 600)


def base_weight(case: Case, dtype: torch.dtype) -> torch.Tensor:
    return next(case.targets()).weight(dtype)


def test_every_algorithm_has_a_strategy() -> None:
    assert {kind.algo for kind in algorithms()} <= STRATEGIES.keys(), (
        "write one in tests/support/strategies.py"
    )


@given(any_case(), weight_dtypes)
def test_delta_is_the_formula(case: Case, dtype: torch.dtype) -> None:
    weight = base_weight(case, dtype)
    got = LayerAdapter.from_tensors(case.tensors).delta(weight)
    check_delta(got, expected_delta(case.algos, case.tensors, weight), case, dtype)


@given(any_case(), weight_dtypes, multipliers, blocks)
def test_update_is_the_formula_whatever_the_blocks(
    case: Case, dtype: torch.dtype, multiplier: float, block: int
) -> None:
    start = base_weight(case, dtype)
    base = to_numpy(start)
    change = multiplier * expected_delta(case.algos, case.tensors, start)
    with pytest.MonkeyPatch.context() as patch:
        set_blocks(patch, block)
        weight = LayerAdapter.from_tensors(case.tensors).add_to_(start.clone(), multiplier)
    check_rounded_once(weight, base + change, tolerance(case, dtype, base, change))
    if multiplier == 0:
        assert same_bits(weight, start)


@given(any_case(), multipliers, blocks, st.randoms(use_true_random=False))
def test_update_goes_into_any_view(case: Case, multiplier: float, block: int, random: object) -> None:
    # A weight whose axes lie in memory in any order: channels-last is one of them.
    start = base_weight(case, torch.float32)
    order = list(range(start.dim()))
    random.shuffle(order)  # type: ignore[attr-defined]
    view = torch.empty([start.shape[axis] for axis in order]).permute(
        [order.index(axis) for axis in range(len(order))]
    )
    view.copy_(start)
    base = to_numpy(start)
    change = multiplier * expected_delta(case.algos, case.tensors, start)
    with pytest.MonkeyPatch.context() as patch:
        set_blocks(patch, block)
        LayerAdapter.from_tensors(case.tensors).add_to_(view, multiplier)
    check_rounded_once(view, base + change, tolerance(case, torch.float32, base, change))


@given(any_case())
def test_exactly_one_algorithm_accepts_and_nothing_is_lost(case: Case) -> None:
    accepting = [
        kind.algo
        for kind in algorithms()
        if not kind.keys.problems(case.tensors) and not kind.shape_problems(case.tensors)
    ]
    assert accepting in ([], list(case.algos))
    layer = LayerAdapter.from_tensors(case.tensors)
    assert tuple(part.algo for part in layer.components()) == (*case.algos, *case.bias_algos)
    out = layer.to_tensors()
    assert out.keys() == case.tensors.keys()
    assert all(same_bits(out[suffix], value) for suffix, value in case.tensors.items())


@given(any_case(), multipliers)
def test_the_change_is_linear_in_the_multiplier(case: Case, multiplier: float) -> None:
    layer, start = LayerAdapter.from_tensors(case.tensors), base_weight(case, torch.float64)
    once = to_numpy(layer.add_to_(start.clone(), 1.0)) - to_numpy(start)
    some = to_numpy(layer.add_to_(start.clone(), multiplier)) - to_numpy(start)
    bound = 1e-12 * (1 + abs(multiplier)) * (np.abs(once).max() + np.abs(to_numpy(start)).max())
    assert np.abs(some - multiplier * once).max() <= bound


@given(any_case(), multipliers)
def test_an_additive_change_can_be_taken_back(case: Case, multiplier: float) -> None:
    layer, start = LayerAdapter.from_tensors(case.tensors), base_weight(case, torch.float64)
    if layer.needs_weight:
        return
    weight = apply_(start.clone(), [(layer, multiplier), (layer, -multiplier)])
    bound = 1e-11 * (1 + np.abs(multiplier * expected_delta(case.algos, case.tensors, start)).max())
    assert np.abs(to_numpy(weight) - to_numpy(start)).max() <= bound
