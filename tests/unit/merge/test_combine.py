"""Every algorithm × every method against the method's formula in float64; what is promised of the results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from combine_runs import LAYER, SAMPLES, adapters, base_of, combine, delta_of, every_sample, linear, lokr
from combining import DEPENDENT, expected, variant
from oracles import to_numpy
from samples import CASES, Case

import lycoris_algos
from lycoris_algos import BadValueError
from lycoris_algos.adapters import algorithms, extras, modifiers
from lycoris_algos.merge.combine import (
    METHODS,
    CombineOptions,
    RankKind,
    RankRule,
    plan_combine,
)
from lycoris_algos.merge.combine.plan import Route
from lycoris_algos.network import StackEntry

KINDS = [
    kind for kind in (*algorithms(), *extras(), *modifiers()) if kind.keys.names and kind.algo != "reshape"
]


def test_every_algorithm_is_here() -> None:
    assert {kind.algo for kind in KINDS} <= {a for case in SAMPLES for a in (*case.algos, *case.bias_algos)}


# ---- the formulas ---------------------------------------------------------------------------------------


@every_sample
@pytest.mark.parametrize("method", list(METHODS))
def test_the_result_is_the_formula(case: Case, method: str) -> None:
    sets = [adapters(variant(case, number), f"set{number}") for number in (1, 2)]
    weights = (0.8, -0.6) if method in ("sum", "ties") else (0.8, 0.5)
    sources = [StackEntry(own, w, w) for own, w in zip(sets, weights, strict=True)]
    base = base_of(case)
    try:
        exact = combine(sources, base, method=method, dtype=torch.float32, seed=7)
    except BadValueError:  # nothing is left: so says the formula
        weight = next(case.targets()).weight()
        assert not expected(method, [delta_of(own[LAYER], weight) for own in sets], weights).any()
        return
    result = exact.adapters[LAYER]
    for target in case.targets():
        weight = target.weight()
        own = [s[LAYER] if target.what == "weight" else s[LAYER].bias for s in sets]
        deltas = [delta_of(layer, weight) for layer in own]
        name = LAYER if target.what == "weight" else f"{LAYER}.bias"
        wanted = expected(method, deltas, weights, seed=7, layer=name)
        got = delta_of(result if target.what == "weight" else result.bias, weight)
        scale = max(np.abs(w * d).max() for d, w in zip(deltas, weights, strict=True))
        difference = np.abs(got - wanted)
        if not METHODS[method].linear:
            # A selection may fall on the other side where two elements differ by a rounding.
            # MiSS repeats its numbers, so that many of them are as large as the last that is kept.
            assert np.mean(difference > 1e-5 * scale) < (0.05 if "miss" in case.algos else 0.01)
            assert np.median(difference) < 1e-5 * scale
        else:
            assert difference.max() < 1e-5 * scale
    if not any(case_part.needs_weight for case_part in (own[0],) if case_part is not None):
        assert exact.largest_error < 1e-5


@every_sample
def test_a_plus_b_minus_b_is_a(case: Case) -> None:
    first, second = (adapters(variant(case, number), f"set{number}") for number in (1, 2))
    base = base_of(case)
    both = combine([StackEntry(first), StackEntry(second)], base, dtype=torch.float32).adapters
    again = combine([StackEntry(both), StackEntry(second)], base, method="subtract", dtype=torch.float32)
    for target in case.targets():
        weight = target.weight()
        own = [s[LAYER] if target.what == "weight" else s[LAYER].bias for s in (first, second)]
        wanted = delta_of(own[0], weight)
        after = again.adapters[LAYER]
        got = delta_of(after if target.what == "weight" else after.bias, weight)
        scale = np.abs(wanted).max() + np.abs(delta_of(own[1], weight)).max()
        assert np.abs(got - wanted).max() < 1e-5 * scale


@every_sample
@pytest.mark.parametrize("output", ["lora", "full"])
def test_every_algorithm_becomes_a_lora_or_a_whole_change(case: Case, output: str) -> None:
    own = adapters(case.tensors)
    result = combine([StackEntry(own)], base_of(case), output=output, dtype=torch.float32).adapters
    for target in case.targets():
        weight = target.weight()
        before, after = (s[LAYER] if target.what == "weight" else s[LAYER].bias for s in (own, result))
        assert after is not None
        wanted = delta_of(before, weight)
        assert np.abs(delta_of(after, weight) - wanted).max() < 1e-5 * np.abs(wanted).max()
        if target.what == "weight" and len(target.shape) > 1:
            assert {part.algo for part in after.components()} - set(case.bias_algos) <= {output, "full_bias"}


@pytest.mark.parametrize("weights", [(1.0, 0.5, 0.25), (1.0, -0.5, 0.25)])
def test_projection_leaves_zero_inner_products(weights: tuple[float, ...]) -> None:
    sets = [linear(rank, seed) for rank, seed in ((4, 1), (6, 2), (3, 3))]
    sources = [StackEntry(own, w) for own, w in zip(sets, weights, strict=True)]
    off = combine(sources, method="project off").adapters
    shared = combine(sources, method="common part").adapters
    for name, layer in off.items():
        deltas = [to_numpy(s[name].delta((64, 48)).double()) for s in sets]
        rest = to_numpy(layer.delta((64, 48)).double())
        for other in deltas[1:]:
            assert abs((rest * other).sum()) < 1e-5 * np.linalg.norm(rest) * np.linalg.norm(other)
        back = rest + to_numpy(shared[name].delta((64, 48)).double())
        assert np.abs(back - weights[0] * deltas[0]).max() < 1e-5 * np.abs(deltas[0]).max()


def test_the_mean_of_several_on_the_sphere_is_as_far_from_each_as_their_shares_say() -> None:
    sets = [linear(4, seed, layers=1) for seed in (1, 2, 3)]
    result = combine([StackEntry(own) for own in sets], method="slerp").adapters
    deltas = [to_numpy(s[LAYER].delta((64, 48)).double()).ravel() for s in sets]
    mean = to_numpy(result[LAYER].delta((64, 48)).double()).ravel()
    assert math.isclose(np.linalg.norm(mean), np.mean([np.linalg.norm(d) for d in deltas]), rel_tol=1e-5)
    unit = mean / np.linalg.norm(mean)
    pull = np.zeros_like(unit)
    for delta in deltas:  # at the mean, the geodesics to all of them pull nowhere
        other = delta / np.linalg.norm(delta)
        cosine = float(unit @ other)
        pull += math.acos(cosine) / math.sqrt(1 - cosine**2) * (other - cosine * unit)
    assert np.linalg.norm(pull) < 1e-4


def test_a_layer_that_one_adapter_lacks() -> None:
    one, two = linear(4, 1, layers=1), linear(4, 2, layers=2)
    alone = "lora_unet_block_1_to_q"
    wanted = to_numpy(two[alone].delta((64, 48)))
    for method, share in (
        ("sum", 0.5),
        ("average", 1 / 3),
        ("slerp", 1 / 3),
        ("subtract", -0.5),
        ("ties", None),
    ):
        result = combine([StackEntry(one), StackEntry(two, 0.5)], method=method).adapters
        if share is not None:
            assert np.allclose(to_numpy(result[alone].delta((64, 48))), share * wanted, atol=1e-6)
    for method in ("common part", "project off"):
        combined = combine([StackEntry(one), StackEntry(two)], method=method)
        assert list(combined.adapters) == [LAYER]
        assert "1 parameters are left out" in combined.report()


# ---- random masks ---------------------------------------------------------------------------------------


def test_masks_depend_on_seed_layer_and_adapter_alone() -> None:
    from lycoris_algos.merge.combine.methods.dropping import uniform

    like = torch.empty(3, 4)
    drawn = uniform(like, 5, "layer", 0)
    torch.manual_seed(99)
    assert torch.equal(drawn, uniform(like.double(), 5, "layer", 0))
    for other in ((6, "layer", 0), (5, "other", 0), (5, "layer", 1)):
        assert not torch.equal(drawn, uniform(like, *other))
    # The very numbers: they are the same on every machine and in every version.
    assert [round(float(v), 6) for v in drawn.flatten()[:4]] == FIRST_NUMBERS


FIRST_NUMBERS = [0.375996, 0.662079, 0.122612, 0.505707]


@pytest.mark.parametrize("method", ["dare", "della"])
def test_random_methods_repeat_and_follow_the_seed(method: str) -> None:
    sources = [StackEntry(linear(4, 1)), StackEntry(linear(4, 2))]
    runs = [combine(sources, method=method, seed=seed).adapters for seed in (3, 3, 4)]
    first, again, other = (lycoris_algos.network.to_tensors(run) for run in runs)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


# ---- routes ---------------------------------------------------------------------------------------------


def route(sources: list[StackEntry], **options: object) -> set[Route]:
    plan = plan_combine(sources, CombineOptions(**options))  # type: ignore[arg-type]
    return {parameter.route for parameter in plan.parameters}


def test_the_cheapest_way_is_taken() -> None:
    a, b = StackEntry(linear(4, 1)), StackEntry(linear(4, 2))
    assert route([a]) == {Route.KEPT}
    assert route([a, b]) == {Route.FACTORS}
    assert route([a, b], method="knots", rank=RankRule(RankKind.FIXED, 4)) == {Route.FACTORS}
    assert route([a, b], method="ties") == {Route.DENSE}
    one, other = lokr(1), lokr(2)
    shared = lokr(3, w1=one[LAYER].to_tensors()["lokr_w1"])
    assert route([StackEntry(one), StackEntry(shared)]) == {Route.SUMMED}
    assert route([StackEntry(one), StackEntry(other)]) == {Route.DENSE}


@pytest.mark.parametrize("which", ["lokr_w1", "lokr_w2"])
def test_lokrs_that_share_a_factor_stay_one(which: str) -> None:
    one = lokr(1)
    other = lokr(2, **{which.removeprefix("lokr_"): one[LAYER].to_tensors()[which]})
    combined = combine([StackEntry(one, 0.7), StackEntry(other, -0.4)])
    layer = combined.adapters[LAYER]
    assert layer.algorithm is not None
    assert layer.algorithm.algo == "lokr"
    wanted = 0.7 * one[LAYER].delta((64, 48)) - 0.4 * other[LAYER].delta((64, 48))
    assert torch.allclose(layer.delta((64, 48)), wanted, atol=1e-5)
    assert combined.largest_error < 1e-5


def test_one_adapter_as_it_was_trained_is_kept_bit_for_bit() -> None:
    for case in (*CASES, *DEPENDENT):
        own = adapters(case.tensors)
        kept = lycoris_algos.network.to_tensors(combine([StackEntry(own)]).adapters)
        before = lycoris_algos.network.to_tensors(own)
        assert kept.keys() == before.keys(), case.name
        assert all(torch.equal(kept[key], before[key]) for key in kept), case.name
