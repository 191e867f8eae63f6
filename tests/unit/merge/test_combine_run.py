"""What combining refuses and says, and how a run goes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from combine_runs import LAYER, SAMPLES, adapters, base_of, combine, linear
from combining import expected, variant
from oracles import to_numpy

import lycoris_algos
from lycoris_algos import AdapterSet, BadValueError, CancelledError, NeedsBaseError
from lycoris_algos.merge.combine import (
    METHODS,
    CombineOptions,
    plan_combine,
    run_combine,
)
from lycoris_algos.model_files import WeightsInMemory
from lycoris_algos.network import StackEntry, to_tensors
from lycoris_algos.ops.ranks import RankKind, RankRule


def test_weight_dependent_adapters_need_the_base() -> None:
    for case in SAMPLES:
        sets = [adapters(variant(case, number), f"{number}") for number in (1, 2)]
        sources = [StackEntry(own) for own in sets]
        layer = sets[0][LAYER]
        bias_needs = layer.bias is not None and layer.bias.needs_weight
        if layer.needs_weight or bias_needs or (layer.weight_components and layer.matrix_shape is None):
            with pytest.raises(NeedsBaseError, match="give the base model"):
                plan_combine(sources)
        else:
            plan_combine(sources)


def test_only_what_depends_on_the_weight_is_said_to() -> None:
    lora = {"lora_up.weight": torch.randn(24, 2), "lora_down.weight": torch.randn(2, 16)}
    sets = [adapters(lora, "kohya"), adapters({**lora, "dora_scale": torch.ones(24, 1)}, "kohya")]
    with pytest.raises(NeedsBaseError, match=r"^DoRA changes a weight by its own values"):
        plan_combine([StackEntry(own) for own in sets])


def test_live_order_is_what_a_stack_does() -> None:
    case = next(case for case in SAMPLES if case.algos == ("ia3",) and len(case.shape) == 2)
    sets = [adapters(variant(case, number), f"{number}") for number in (1, 2)]
    base = base_of(case)
    weight = next(case.targets()).weight()
    live = lycoris_algos.apply_(weight.double(), [(s[LAYER], 1.0) for s in sets]) - weight.double()
    sources = [StackEntry(own) for own in sets]
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
    assert len(combine([StackEntry(kohya), StackEntry(comfy)]).adapters) == 1
    combined = combine([StackEntry(kohya), StackEntry(other)])
    assert len(combined.adapters) == 2
    assert "have no partner" in combined.report()


def test_the_norms_of_two_files_find_each_other() -> None:
    """Newer ComfyUIs call the weight of Flux' norms otherwise than older ones."""
    norm = "double_blocks.0.img_attn.norm.query_norm"
    stored = {"diff": torch.ones(8)}
    flat = norm.replace(".", "_")
    names = (f"diffusion_model.{norm}.scale", f"diffusion_model.{norm}", f"lora_unet_{flat}_scale")
    files = [adapters(stored, name, name) for name in names]
    assert len(combine([StackEntry(own) for own in files]).adapters) == 1


class TwoNames(WeightsInMemory):
    """A model that has two names for a layer."""

    def same_layer(self, layer: str) -> str | None:
        return {LAYER: "the same", "transformer.somewhere.else": "the same"}.get(layer)


def test_a_model_tells_which_layers_are_the_same() -> None:
    kohya = linear(4, 1, layers=1)
    other = adapters(linear(4, 2, layers=1)[LAYER].to_tensors(), "diffusers", "transformer.somewhere.else")
    plan = plan_combine([StackEntry(kohya), StackEntry(other)], base=TwoNames({}, {}))
    assert len(run_combine(plan).adapters) == 1


def test_an_enlarged_weight_stays_enlarged() -> None:
    sets = []
    for seed in (1, 2):
        tensors = linear(4, seed, layers=1)[LAYER].to_tensors()
        sets.append(adapters({**tensors, "reshape_weight": torch.tensor([64, 48])}, f"{seed}"))
    base = WeightsInMemory({LAYER: torch.randn(64, 32)}, {})
    for method in ("sum", "ties"):
        layer = combine([StackEntry(own) for own in sets], base, method=method).adapters[LAYER]
        assert layer.reshape is not None
        assert layer.delta(base.weights[LAYER]).shape == (64, 48)
    wanted = sets[0][LAYER].delta(base.weights[LAYER]) + sets[1][LAYER].delta(base.weights[LAYER])
    summed = combine([StackEntry(own) for own in sets], base).adapters[LAYER]
    assert torch.allclose(summed.delta(base.weights[LAYER]), wanted, atol=1e-5)


def test_embeddings_of_all_files_come_along() -> None:
    tensors = linear(4, 1, layers=1)[LAYER].to_tensors()
    stored = {f"{LAYER}.{suffix}": value for suffix, value in tensors.items()}
    one, two = (
        lycoris_algos.from_tensors({**stored, f"bundle_emb.{word}.clip_l": torch.randn(2, 768)}, name=word)
        for word in ("first", "second")
    )
    assert set(combine([StackEntry(one), StackEntry(two)]).adapters.embeddings) == {"first", "second"}


def test_adapters_of_different_models_are_refused() -> None:
    with pytest.raises(lycoris_algos.ShapeMismatchError, match="different models"):
        combine([StackEntry(linear(4, 1)), StackEntry(linear(4, 2, shape=(32, 48)))])


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
    with pytest.raises(BadValueError, match="2 adapters or more"):
        plan_combine([StackEntry(linear(4, 1))], CombineOptions(method="subtract"))
    with pytest.raises(BadValueError, match="every strength"):
        plan_combine([StackEntry(linear(4, 1), 0.0, 0.0)])


# ---- the run --------------------------------------------------------------------------------------------


def test_progress_names_layers_and_cancel_stops_between_them() -> None:
    plan = plan_combine([StackEntry(linear(4, 1)), StackEntry(linear(4, 2))])
    seen: list[tuple[int, int, str]] = []
    run_combine(plan, progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert seen[0][2] == LAYER
    with pytest.raises(CancelledError):
        run_combine(plan, cancel=lambda: True)


def test_out_of_memory_on_a_layer_moves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from lycoris_algos.merge.combine import run

    plan = plan_combine([StackEntry(linear(4, 1)), StackEntry(linear(4, 2))])
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
    metadata = combine([StackEntry(one, 0.5), StackEntry(two)]).adapters.metadata
    recipe = json.loads(metadata["lycoris_algos.recipe"])
    assert [source["file"] for source in recipe["sources"]] == ["one", "two"]
    assert recipe["sources"][0]["strength_model"] == 0.5
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert "ss_v2" not in metadata
    assert "ss_network_args" not in metadata
    assert metadata["modelspec.merged_from"] == "one, two"


@pytest.mark.parametrize("prefix", ["lora_te_", "lycoris_"])
@pytest.mark.parametrize("method", [found.name for found in METHODS.values() if found.linear])
def test_text_encoder_layers_have_their_own_strength(method: str, prefix: str) -> None:
    text = f"{prefix}text_model_encoder_layers_0_self_attn_q_proj"
    sets = []
    for seed in (1, 2):
        layers = {LAYER: linear(4, seed)[LAYER], text: linear(4, seed + 5)[LAYER]}
        sets.append(AdapterSet(layers, name=f"{seed}"))
    sources = [StackEntry(sets[0], 1.0, 0.5), StackEntry(sets[1], 0.25, 2.0)]
    # One file has one spelling.
    result = {
        name.replace("lora_te_", prefix): layer
        for name, layer in combine(sources, method=method).adapters.items()
    }
    for name, weights in ((LAYER, (1.0, 0.25)), (text, (0.5, 2.0))):
        deltas = [to_numpy(s[name].delta((64, 48)).double()) for s in sets]
        wanted = expected(method, deltas, weights)
        got = to_numpy(result[name].delta((64, 48))) if name in result else np.zeros((64, 48))
        assert np.abs(got - wanted).max() < 1e-5 * np.abs(deltas).max()


@pytest.mark.parametrize("method", ["sum", "dare", "ties"])
def test_the_result_does_not_depend_on_how_many_workers_there_are(method: str) -> None:
    stack = [StackEntry(linear(4, seed, shape=(320, 160), layers=9)) for seed in (1, 2)]
    rank = RankRule(RankKind.BUDGET, 0.05)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(to_tensors(combine(stack, method=method, rank=rank).adapters))
    finally:
        torch.set_num_threads(threads)
    first, *others = results
    assert len(first) > 9
    for other in others:
        assert list(first) == list(other)
        assert all(torch.equal(first[key], other[key]) for key in first)
