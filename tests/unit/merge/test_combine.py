"""Every algorithm × every method against the method's formula in float64; what is promised of the results."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from combining import DEPENDENT, ELEMENTWISE, LINEAR, expected, one_per_algorithm, variant
from oracles import to_numpy
from samples import CASES, Case
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet, BadValueError, CancelledError, LayerAdapter, NeedsBaseError
from lycoris_algos.adapters import cores, modifiers, parts
from lycoris_algos.merge.combine import (
    Combined,
    CombineOptions,
    Method,
    Output,
    RankKind,
    RankRule,
    Source,
    WeightsInMemory,
    plan_combine,
    run_combine,
)
from lycoris_algos.merge.combine.plan import Route

LAYER = "lora_unet_block_0_to_q"
KINDS = [kind for kind in (*cores(), *parts(), *modifiers()) if kind.keys.names and kind.algo != "reshape"]
SAMPLES = one_per_algorithm()
METHODS = [method.value for method in Method]


def test_every_algorithm_is_here() -> None:
    assert {kind.algo for kind in KINDS} <= {a for case in SAMPLES for a in (*case.algos, *case.bias_algos)}


every_sample = pytest.mark.parametrize("case", SAMPLES, ids=lambda case: case.name)


def adapters(tensors: dict[str, Tensor], name: str = "a", layer: str = LAYER, **metadata: str) -> AdapterSet:
    """A set of one layer."""
    stored = {f"{layer}.{suffix}": value for suffix, value in tensors.items()}
    return lycoris_algos.from_tensors(stored, metadata, name=name)


def base_of(case: Case, layer: str = LAYER) -> WeightsInMemory:
    weights = {target.what: target.weight() for target in case.targets()}
    named = [{layer: weights[what]} if what in weights else {} for what in ("weight", "bias")]
    return WeightsInMemory(*named)


def delta_of(layer: LayerAdapter | None, weight: Tensor) -> np.ndarray:
    """ΔW in float64 as a matrix; nothing for no layer."""
    found = torch.zeros_like(weight) if layer is None else layer.delta(weight.double())
    return to_numpy(found).reshape(weight.shape[0], -1)


def combine(
    sources: list[Source], base: WeightsInMemory | None = None, device: str = "cpu", **options: object
) -> Combined:
    return run_combine(plan_combine(sources, CombineOptions(**options), base), device)  # type: ignore[arg-type]


def linear(rank: int, seed: int, shape: tuple[int, int] = (64, 48), layers: int = 3) -> AdapterSet:
    """A LoRA of some Linear layers."""
    draw = torch.Generator().manual_seed(seed)
    stored = {}
    for index in range(layers):
        stored[f"lora_unet_block_{index}_to_q.lora_up.weight"] = torch.randn((shape[0], rank), generator=draw)
        stored[f"lora_unet_block_{index}_to_q.lora_down.weight"] = torch.randn(
            (rank, shape[1]), generator=draw
        )
        stored[f"lora_unet_block_{index}_to_q.alpha"] = torch.tensor(2.0)
    return lycoris_algos.from_tensors(stored, name=f"lora{seed}")


# ---- the formulas ---------------------------------------------------------------------------------------


@every_sample
@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_the_formula(case: Case, method: str) -> None:
    sets = [adapters(variant(case, number), f"set{number}") for number in (1, 2)]
    weights = (0.8, -0.6) if method in ("sum", "ties") else (0.8, 0.5)
    sources = [Source(own, w, w) for own, w in zip(sets, weights, strict=True)]
    base = base_of(case)
    try:
        exact = combine(sources, base, method=Method(method), dtype=torch.float32, seed=7)
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
        if method in ELEMENTWISE or method == "knots":
            # A selection may fall on the other side where two elements differ by a rounding.
            assert np.mean(difference > 1e-5 * scale) < 0.01
            assert np.median(difference) < 1e-5 * scale
        else:
            assert difference.max() < 1e-5 * scale
    if not any(case_part.needs_weight for case_part in (own[0],) if case_part is not None):
        assert exact.largest_error < 1e-5


@every_sample
def test_a_plus_b_minus_b_is_a(case: Case) -> None:
    first, second = (adapters(variant(case, number), f"set{number}") for number in (1, 2))
    base = base_of(case)
    both = combine([Source(first), Source(second)], base, dtype=torch.float32).adapters
    again = combine([Source(both), Source(second)], base, method=Method.SUBTRACT, dtype=torch.float32)
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
    result = combine([Source(own)], base_of(case), output=Output(output), dtype=torch.float32).adapters
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
    sources = [Source(own, w) for own, w in zip(sets, weights, strict=True)]
    off = combine(sources, method=Method.PROJECT_OFF).adapters
    shared = combine(sources, method=Method.COMMON_PART).adapters
    for name, layer in off.items():
        deltas = [to_numpy(s[name].delta((64, 48)).double()) for s in sets]
        rest = to_numpy(layer.delta((64, 48)).double())
        for other in deltas[1:]:
            assert abs((rest * other).sum()) < 1e-5 * np.linalg.norm(rest) * np.linalg.norm(other)
        back = rest + to_numpy(shared[name].delta((64, 48)).double())
        assert np.abs(back - weights[0] * deltas[0]).max() < 1e-5 * np.abs(deltas[0]).max()


def test_the_mean_of_several_on_the_sphere_is_as_far_from_each_as_their_shares_say() -> None:
    sets = [linear(4, seed, layers=1) for seed in (1, 2, 3)]
    result = combine([Source(own) for own in sets], method=Method.SLERP).adapters
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
        result = combine([Source(one), Source(two, 0.5)], method=Method(method)).adapters
        if share is not None:
            assert np.allclose(to_numpy(result[alone].delta((64, 48))), share * wanted, atol=1e-6)
    for method in ("common part", "project off"):
        combined = combine([Source(one), Source(two)], method=Method(method))
        assert list(combined.adapters) == [LAYER]
        assert "1 parameters are left out" in combined.report()


# ---- random masks ---------------------------------------------------------------------------------------


def test_masks_depend_on_seed_layer_and_adapter_alone() -> None:
    from lycoris_algos.merge.combine.methods import uniform

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
    sources = [Source(linear(4, 1)), Source(linear(4, 2))]
    runs = [combine(sources, method=Method(method), seed=seed).adapters for seed in (3, 3, 4)]
    first, again, other = (lycoris_algos.network.to_tensors(run) for run in runs)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


# ---- routes ---------------------------------------------------------------------------------------------


def route(sources: list[Source], **options: object) -> set[Route]:
    plan = plan_combine(sources, CombineOptions(**options))  # type: ignore[arg-type]
    return {parameter.route for parameter in plan.parameters}


def lokr(seed: int, w1: Tensor | None = None, w2: Tensor | None = None) -> AdapterSet:
    draw = torch.Generator().manual_seed(seed)
    first = torch.randn((4, 4), generator=draw) if w1 is None else w1
    second = torch.randn((16, 12), generator=draw) if w2 is None else w2
    return adapters({"lokr_w1": first, "lokr_w2": second}, f"lokr{seed}")


def test_the_cheapest_way_is_taken() -> None:
    a, b = Source(linear(4, 1)), Source(linear(4, 2))
    assert route([a]) == {Route.KEPT}
    assert route([a, b]) == {Route.FACTORS}
    assert route([a, b], method=Method.KNOTS, rank=RankRule(RankKind.FIXED, 4)) == {Route.FACTORS}
    assert route([a, b], method=Method.TIES) == {Route.DENSE}
    one, other = lokr(1), lokr(2)
    shared = lokr(3, w1=one[LAYER].to_tensors()["lokr_w1"])
    assert route([Source(one), Source(shared)]) == {Route.KRONECKER}
    assert route([Source(one), Source(other)]) == {Route.DENSE}


@pytest.mark.parametrize("which", ["lokr_w1", "lokr_w2"])
def test_lokrs_that_share_a_factor_stay_one(which: str) -> None:
    one = lokr(1)
    other = lokr(2, **{which.removeprefix("lokr_"): one[LAYER].to_tensors()[which]})
    combined = combine([Source(one, 0.7), Source(other, -0.4)])
    layer = combined.adapters[LAYER]
    assert layer.core is not None
    assert layer.core.algo == "lokr"
    wanted = 0.7 * one[LAYER].delta((64, 48)) - 0.4 * other[LAYER].delta((64, 48))
    assert torch.allclose(layer.delta((64, 48)), wanted, atol=1e-5)
    assert combined.largest_error < 1e-5


def test_one_adapter_as_it_was_trained_is_kept_bit_for_bit() -> None:
    for case in (*CASES, *DEPENDENT):
        own = adapters(case.tensors)
        kept = lycoris_algos.network.to_tensors(combine([Source(own)]).adapters)
        before = lycoris_algos.network.to_tensors(own)
        assert kept.keys() == before.keys(), case.name
        assert all(torch.equal(kept[key], before[key]) for key in kept), case.name


# ---- resizing -------------------------------------------------------------------------------------------


def spectrum(layer: LayerAdapter) -> np.ndarray:
    return np.linalg.svd(to_numpy(layer.delta((64, 48)).double()), compute_uv=False)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("sv_ratio", 2.0), ("sv_ratio", 1.1), ("sv_fro", 0.9), ("sv_cumulative", 0.7), ("energy", 0.8)],
)
def test_resizing_follows_the_rule(kind: str, value: float) -> None:
    own = linear(12, 1)
    result = combine([Source(own)], rank=RankRule(RankKind(kind), value)).adapters
    for name, layer in result.items():
        s = spectrum(own[name])
        if kind == "sv_ratio":
            wanted = max(1, int((s > s[0] / value).sum()))
        else:
            parts = s if kind == "sv_cumulative" else s**2
            share = value**2 if kind == "sv_fro" else value
            wanted = int(np.argmax(np.cumsum(parts) >= share * parts.sum())) + 1
        assert layer.core is not None
        assert layer.core.rank == wanted
        assert np.allclose(spectrum(layer)[:wanted], s[:wanted], rtol=1e-4)


def test_a_fixed_rank_is_the_best_one() -> None:
    own, other = linear(12, 1), linear(12, 2)
    combined = combine([Source(own), Source(other)], rank=RankRule(RankKind.FIXED, 8))
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
    combined = combine([Source(adapters(case.tensors))], base_of(case), rank=rule, dtype=torch.float32)
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
    sources = [Source(linear(12, 1)), Source(linear(12, 2))]
    rule = RankRule(RankKind.BUDGET, budget / 1e6)
    combined = combine(sources, output=Output(output), rank=rule, dtype=torch.float16)
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
    combined = combine([Source(own)], rank=RankRule(RankKind.BUDGET, 0.004), dtype=torch.float16)
    ranks = {outcome.parameter.layer: outcome.rank or 0 for outcome in combined.outcomes}
    assert ranks[LAYER] > 3 * ranks["lora_unet_block_1_to_q"]
    with pytest.raises(BadValueError, match="too small"):
        combine([Source(own)], rank=RankRule(RankKind.BUDGET, 0.0001))


def test_fits_of_their_own_kind_are_found_again() -> None:
    draw = torch.Generator().manual_seed(3)
    kron = lokr(5)
    again = combine([Source(kron, 0.5)], output=Output.LOKR, rank=RankRule(RankKind.FIXED, 16), factor=4)
    assert again.adapters[LAYER].core.algo == "lokr"  # type: ignore[union-attr]
    assert again.retained > 1 - 1e-9
    hada = {
        f"hada_w{n}_{s}": torch.randn((64, 2) if s == "a" else (2, 48), generator=draw)
        for n in (1, 2)
        for s in "ab"
    }
    full = combine([Source(adapters(hada))], output=Output.FULL).adapters
    found = combine([Source(full)], output=Output.LOHA, rank=RankRule(RankKind.FIXED, 2))
    assert found.retained > 0.5
    assert "LoRAs of the same size would keep" in found.report()


# ---- what it refuses and says ---------------------------------------------------------------------------


def test_weight_dependent_adapters_need_the_base() -> None:
    for case in SAMPLES:
        sets = [adapters(variant(case, number), f"{number}") for number in (1, 2)]
        sources = [Source(own) for own in sets]
        layer = sets[0][LAYER]
        if layer.needs_weight or (layer.bias is not None and layer.bias.needs_weight):
            with pytest.raises(NeedsBaseError, match="give the base model"):
                plan_combine(sources)
        else:
            plan_combine(sources)


def test_live_order_is_what_a_stack_does() -> None:
    case = next(case for case in SAMPLES if case.algos == ("ia3",) and len(case.shape) == 2)
    sets = [adapters(variant(case, number), f"{number}") for number in (1, 2)]
    base = base_of(case)
    weight = next(case.targets()).weight()
    live = lycoris_algos.apply_(weight.double(), [(s[LAYER], 1.0) for s in sets]) - weight.double()
    sources = [Source(own) for own in sets]
    replayed = combine(sources, base, live_order=True).adapters[LAYER].delta(weight)
    assert torch.allclose(replayed.double(), live, atol=1e-6)
    based = combine(sources, base)
    assert not torch.allclose(based.adapters[LAYER].delta(weight).double(), live, atol=1e-4)
    assert "sees the weight as the others left it" in based.report()


def test_layers_of_two_dialects_find_each_other() -> None:
    kohya = linear(4, 1, layers=1)
    tensors = linear(4, 2, layers=1)[LAYER].to_tensors()
    comfy = adapters(tensors, "comfy", "diffusion_model.block.0.to.q")
    other = adapters(tensors, "diffusers", "transformer.somewhere.else")
    assert len(combine([Source(kohya), Source(comfy)]).adapters) == 1
    combined = combine([Source(kohya), Source(other)])
    assert len(combined.adapters) == 2
    assert "have no partner" in combined.report()
    known = {LAYER: "the same", "transformer.somewhere.else": "the same"}
    plan = plan_combine([Source(kohya), Source(other)], same_layer=known.get)
    assert len(run_combine(plan).adapters) == 1


def test_an_enlarged_weight_stays_enlarged() -> None:
    sets = []
    for seed in (1, 2):
        tensors = linear(4, seed, layers=1)[LAYER].to_tensors()
        sets.append(adapters({**tensors, "reshape_weight": torch.tensor([64, 48])}, f"{seed}"))
    base = WeightsInMemory({LAYER: torch.randn(64, 32)}, {})
    for method in (Method.SUM, Method.TIES):
        layer = combine([Source(own) for own in sets], base, method=method).adapters[LAYER]
        assert layer.reshape is not None
        assert layer.delta(base.weights[LAYER]).shape == (64, 48)
    wanted = sets[0][LAYER].delta(base.weights[LAYER]) + sets[1][LAYER].delta(base.weights[LAYER])
    summed = combine([Source(own) for own in sets], base).adapters[LAYER]
    assert torch.allclose(summed.delta(base.weights[LAYER]), wanted, atol=1e-5)


def test_embeddings_of_all_files_come_along() -> None:
    tensors = linear(4, 1, layers=1)[LAYER].to_tensors()
    stored = {f"{LAYER}.{suffix}": value for suffix, value in tensors.items()}
    one, two = (
        lycoris_algos.from_tensors({**stored, f"bundle_emb.{word}.clip_l": torch.randn(2, 768)}, name=word)
        for word in ("first", "second")
    )
    assert set(combine([Source(one), Source(two)]).adapters.embeddings) == {"first", "second"}


def test_adapters_of_different_models_are_refused() -> None:
    with pytest.raises(lycoris_algos.ShapeMismatchError, match="different models"):
        combine([Source(linear(4, 1)), Source(linear(4, 2, shape=(32, 48)))])


@pytest.mark.parametrize(
    "options",
    [{"density": 0.0}, {"density": 1.5}, {"scaling": 0.0}, {"gamma": 1.0}, {"epsilon": -1.0}],
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(BadValueError):
        CombineOptions(**options)  # type: ignore[arg-type]


def test_a_stack_with_which_a_method_can_do_nothing() -> None:
    with pytest.raises(BadValueError, match="the stack is empty"):
        plan_combine([])
    with pytest.raises(BadValueError, match="two adapters or more"):
        plan_combine([Source(linear(4, 1))], CombineOptions(method=Method.SUBTRACT))
    with pytest.raises(BadValueError, match="every strength"):
        plan_combine([Source(linear(4, 1), 0.0, 0.0)])


# ---- the run --------------------------------------------------------------------------------------------


def test_progress_names_layers_and_cancel_stops_between_them() -> None:
    plan = plan_combine([Source(linear(4, 1)), Source(linear(4, 2))])
    seen: list[tuple[int, int, str]] = []
    run_combine(plan, progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(0, 3), (1, 3), (2, 3)]
    assert seen[0][2] == LAYER
    with pytest.raises(CancelledError):
        run_combine(plan, cancel=lambda: True)


def test_out_of_memory_on_a_layer_moves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from lycoris_algos.merge.combine import run

    plan = plan_combine([Source(linear(4, 1)), Source(linear(4, 2))])
    plain = run_combine(plan)
    original = run._Run._combine
    calls: list[str] = []

    def failing(self: run._Run, parameter: object, rank: object, device: torch.device) -> object:
        calls.append(device.type)
        if device.type != "cpu":
            if len(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            device = torch.device("cpu")
        return original(self, parameter, rank, device)  # type: ignore[arg-type]

    monkeypatch.setattr(run._Run, "_combine", failing)
    combined = run_combine(plan, "meta")
    assert calls == ["meta", "meta", "cpu", "meta"]
    first, second = (lycoris_algos.network.to_tensors(c.adapters) for c in (plain, combined))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert "computed on the CPU: lora_unet_block_1_to_q" in combined.report()


def test_the_recipe_and_what_the_sources_agree_on_are_in_the_metadata() -> None:
    shared = {"ss_base_model_version": "sdxl_base_v1-0", "ss_network_args": '{"rs_lora": "True"}'}
    one = adapters(linear(4, 1)[LAYER].to_tensors(), "one", **shared, ss_v2="False")
    two = adapters(linear(4, 2)[LAYER].to_tensors(), "two", **shared, ss_v2="True")
    metadata = combine([Source(one, 0.5), Source(two)]).adapters.metadata
    recipe = json.loads(metadata["lycoris_algos.recipe"])
    assert [source["file"] for source in recipe["sources"]] == ["one", "two"]
    assert recipe["sources"][0]["strength_model"] == 0.5
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert "ss_v2" not in metadata
    assert "ss_network_args" not in metadata
    assert metadata["modelspec.merged_from"] == "one, two"


@pytest.mark.parametrize("prefix", ["lora_te_", "lycoris_"])
@pytest.mark.parametrize("method", LINEAR)
def test_text_encoder_layers_have_their_own_strength(method: str, prefix: str) -> None:
    text = f"{prefix}text_model_encoder_layers_0_self_attn_q_proj"
    sets = []
    for seed in (1, 2):
        layers = {LAYER: linear(4, seed)[LAYER], text: linear(4, seed + 5)[LAYER]}
        sets.append(AdapterSet(layers, name=f"{seed}"))
    sources = [Source(sets[0], 1.0, 0.5), Source(sets[1], 0.25, 2.0)]
    result = combine(sources, method=Method(method)).adapters
    for name, weights in ((LAYER, (1.0, 0.25)), (text, (0.5, 2.0))):
        deltas = [to_numpy(s[name].delta((64, 48)).double()) for s in sets]
        wanted = expected(method, deltas, weights)
        got = to_numpy(result[name].delta((64, 48))) if name in result else np.zeros((64, 48))
        assert np.abs(got - wanted).max() < 1e-5 * np.abs(deltas).max()
