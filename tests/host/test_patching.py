"""Files on a model, through our nodes and ComfyUI's own loading, down to each weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
RESNET = "lora_unet_down_blocks_0_resnets_0"
INSIDE = "diffusion_model.input_blocks.1.1"
#: Layers of tiny_sd15 of every kind: {name in a file: key of the weight}.
LAYERS = {
    f"{BLOCK}_attn1_to_q": f"{INSIDE}.transformer_blocks.0.attn1.to_q.weight",
    f"{BLOCK}_attn2_to_k": f"{INSIDE}.transformer_blocks.0.attn2.to_k.weight",
    f"{BLOCK}_ff_net_0_proj": f"{INSIDE}.transformer_blocks.0.ff.net.0.proj.weight",
    "lora_unet_down_blocks_0_attentions_0_proj_in": f"{INSIDE}.proj_in.weight",
    f"{RESNET}_conv1": "diffusion_model.input_blocks.1.0.in_layers.2.weight",
    f"{RESNET}_time_emb_proj": "diffusion_model.input_blocks.1.0.emb_layers.1.weight",
    "lora_unet_conv_in": "diffusion_model.input_blocks.0.0.weight",
    "lora_unet_conv_out": "diffusion_model.out.2.weight",
}
NORMS = {
    f"{BLOCK}_norm1": f"{INSIDE}.transformer_blocks.0.norm1.weight",
    f"{RESNET}_norm1": "diffusion_model.input_blocks.1.0.in_layers.0.weight",
    "lora_unet_conv_norm_out": "diffusion_model.out.0.weight",
}
TO_Q, TO_Q_KEY = next(iter(LAYERS.items()))
ALGOS = ("lora", "loha", "lokr", "full", "norm", "dora", "glora", "ia3", "oft", "boft", "tlora")
#: Roundings that the longer computations may be off by. BOFT multiplies in stages; the singular vectors that
#: T-LoRA starts from are only as certain as its trainer's float32 decomposition made them.
STEPS = {"boft": 8.0, "tlora": 200.0}


def layers_for(algo: str, model: Any) -> tuple[dict[str, tiny.Tensors], dict[str, str]]:
    """A file of ``algo`` for tiny_sd15, and {layer: key}."""
    layers = NORMS if algo == "norm" else LAYERS
    if algo == "tlora":  # where the kernel is not 1 there is no such file
        layers = {name: key for name, key in LAYERS.items() if tiny.parameter(model, key)[0][0].numel() == 1}
    if algo == "oft":
        layers = {name: key for name, key in LAYERS.items() if tiny.parameter(model, key).shape[0] > 4}
    if algo == "boft":
        layers = {name: key for name, key in LAYERS.items() if tiny.parameter(model, key).shape[0] % 64 == 0}
    tensors = {name: tiny.make(algo, tiny.parameter(model, key), name) for name, key in layers.items()}
    return tensors, layers


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_every_weight_becomes_what_the_library_says(
    algo: str, strength: float, sd15: tuple[Any, Any], apply: Any
) -> None:
    model, _ = sd15
    before = tiny.checksum(model)
    tensors, layers = layers_for(algo, model)
    originals = {name: tiny.parameter(model, key).clone() for name, key in layers.items()}
    biases = {
        name: tiny.parameter(model, key.replace(".weight", ".bias")).clone()
        for name, key in layers.items()
        if algo == "norm"
    }

    patched, clip, report = apply.files(model, tensors, strength=strength)

    assert clip is None
    assert f"{len(layers)} of {len(layers)} layers applied" in report
    with tiny.loaded(patched) as weight:
        for name, key in layers.items():
            expected = tiny.changed(originals[name], (tensors[name], strength))
            tiny.assert_weight(weight(key), expected, name, STEPS.get(algo, 4.0))
        for name, original in biases.items():
            key = layers[name].replace(".weight", ".bias")
            tiny.assert_weight(weight(key), tiny.changed_bias(original, (tensors[name], strength)), key)
        other = f"{INSIDE}.transformer_blocks.0.attn1.to_v.weight"
        assert torch.equal(weight(other), tiny.parameter(model, other))
    assert tiny.checksum(model) == before, "not every bit is back after unpatching"


def test_full_changes_weight_and_bias(sd15: tuple[Any, Any], apply: Any) -> None:
    model, _ = sd15
    layer, key = f"{BLOCK}_ff_net_0_proj", LAYERS[f"{BLOCK}_ff_net_0_proj"]
    bias_key = key.replace(".weight", ".bias")
    weight, bias = tiny.parameter(model, key).clone(), tiny.parameter(model, bias_key).clone()
    tensors = {**tiny.make("full", weight), "diff_b": torch.randn_like(bias)}

    patched, _, _ = apply.files(model, {layer: tensors}, strength=0.5)

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), tiny.changed(weight, (tensors, 0.5)))
        tiny.assert_weight(now(bias_key), tiny.changed_bias(bias, (tensors, 0.5)), "bias")


def test_a_weight_that_is_enlarged_shrinks_back(sd3: Any, apply: Any) -> None:
    """BFL's control adapters take more input channels than their base has."""
    layer, key = "lora_unet_context_embedder", "diffusion_model.context_embedder.weight"
    weight = tiny.parameter(sd3, key).clone()
    tensors = {**tiny.make("lora", torch.randn(128, 4100)), "reshape_weight": torch.tensor([128, 4100])}

    patched, _, _ = apply.files(sd3, {layer: tensors}, strength=0.7)

    with tiny.loaded(patched) as now:
        enlarged = torch.nn.functional.pad(weight.double(), (0, 4))
        factors = tensors["lora_up.weight"].double() @ tensors["lora_down.weight"].double()
        tiny.assert_weight(now(key), enlarged + 0.7 * 0.5 * factors)
    assert torch.equal(tiny.parameter(sd3, key), weight)


def test_inputs_stay_as_they_are(sd15: tuple[Any, Any], apply: Any) -> None:
    model, clip = sd15
    before = tiny.checksum(model), tiny.checksum(clip.patcher)
    states = tiny.state_of(model), tiny.state_of(clip.patcher)
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    text_weight = tiny.parameter(
        clip.patcher, "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    )
    tensors = {
        TO_Q: tiny.make("lokr", tiny.parameter(model, TO_Q_KEY)),
        text: tiny.make("lora", text_weight),
    }

    patched, patched_clip, _ = apply.files(model, tensors, clip=clip)

    assert patched is not model
    assert patched_clip is not clip
    assert patched_clip.patcher is not clip.patcher
    assert patched.patches_uuid != model.patches_uuid
    assert patched.model is model.model, "the weights must be shared, not copied"
    assert (tiny.state_of(model), tiny.state_of(clip.patcher)) == states
    assert (tiny.checksum(model), tiny.checksum(clip.patcher)) == before
    with tiny.loaded(patched), tiny.loaded(patched_clip.patcher):
        pass
    assert (tiny.state_of(model), tiny.state_of(clip.patcher)) == states
    assert (tiny.checksum(model), tiny.checksum(clip.patcher)) == before


def test_a_clone_of_the_result_can_be_patched_again(sd15: tuple[Any, Any], apply: Any) -> None:
    model, _ = sd15
    weight = tiny.parameter(model, TO_Q_KEY).clone()
    first, second = tiny.make("lora", weight, "1"), tiny.make("loha", weight, "2")

    patched, _, _ = apply.files(model, {TO_Q: first})
    again, _, _ = apply.files(patched.clone(), {TO_Q: second})

    with tiny.loaded(again) as now:
        tiny.assert_weight(now(TO_Q_KEY), tiny.changed(weight, (first, 1.0), (second, 1.0)))
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(TO_Q_KEY), tiny.changed(weight, (first, 1.0)))
    assert torch.equal(tiny.parameter(model, TO_Q_KEY), weight)


# ---- strengths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["node", "file"])
def test_strength_zero_adds_no_patch(where: str, sd15: tuple[Any, Any], apply: Any) -> None:
    model, _ = sd15
    tensors = {TO_Q: tiny.make("lora", tiny.parameter(model, TO_Q_KEY))}
    stack = apply.stack(tensors, 0.0 if where == "file" else 1.0)

    patched, _, report = apply(model, stack, strength=0.0 if where == "node" else 1.0)

    assert patched.patches == model.patches
    assert patched.patches_uuid == model.patches_uuid
    assert report


def test_strengths_of_file_and_node_multiply(sd15: tuple[Any, Any], apply: Any) -> None:
    model, _ = sd15
    weight = tiny.parameter(model, TO_Q_KEY).clone()
    tensors = tiny.make("loha", weight)
    expected = tiny.changed(weight, (tensors, 0.7))

    for of_file, of_node in ((0.7, 1.0), (1.0, 0.7), (-0.5, -1.4)):
        patched, _, _ = apply(model, apply.stack({TO_Q: tensors}, of_file), strength=of_node)
        with tiny.loaded(patched) as now:
            tiny.assert_weight(now(TO_Q_KEY), expected, f"{of_file}·{of_node}")


def test_node_strength_stays_outside_of_the_patch(sd15: tuple[Any, Any], apply: Any) -> None:
    """So that hooks and schedules can scale it."""
    model, _ = sd15
    tensors = {TO_Q: tiny.make("lora", tiny.parameter(model, TO_Q_KEY))}

    patched, _, _ = apply(model, apply.stack(tensors, 0.5), strength=0.8)

    ((strength, patch, strength_model, offset, function),) = patched.patches[TO_Q_KEY]
    assert (strength, strength_model, offset, function) == (0.8, 1.0, None, None)
    assert 0.5 in patch.weights


# ---- several files ----------------------------------------------------------------------------------------


def test_a_stack_is_one_patch_per_weight(sd15: tuple[Any, Any], apply: Any) -> None:
    model, _ = sd15
    weight = tiny.parameter(model, TO_Q_KEY).clone()
    files = [(algo, tiny.make(algo, weight)) for algo in ("lora", "lokr", "full")]

    stacks = [apply.stack({TO_Q: tensors}, 0.25 * n) for n, (_, tensors) in enumerate(files, 1)]
    patched, _, report = apply(model, *stacks, strength=2.0)

    assert len(patched.patches[TO_Q_KEY]) == 1
    assert report.count("1 of 1 layers applied") == 3
    steps = [(tensors, 0.5 * n) for n, (_, tensors) in enumerate(files, 1)]
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(TO_Q_KEY), tiny.changed(weight, *steps))


@pytest.mark.parametrize("second", ["lora", "dora", "glora"])
def test_two_nodes_in_series_apply_one_after_the_other(
    second: str, sd15: tuple[Any, Any], apply: Any
) -> None:
    model, _ = sd15
    weight = tiny.parameter(model, TO_Q_KEY).clone()
    one, two = tiny.make("loha", weight, "1"), tiny.make(second, weight, "2")

    first, _, _ = apply.files(model, {TO_Q: one}, strength=0.5)
    both, _, _ = apply.files(first, {TO_Q: two}, strength=0.9)

    assert len(both.patches[TO_Q_KEY]) == 2
    with tiny.loaded(both) as now:
        tiny.assert_weight(now(TO_Q_KEY), tiny.changed(weight, (one, 0.5), (two, 0.9)))


@pytest.mark.parametrize("together", [True, False])
def test_tlora_starts_from_the_models_own_weight(together: bool, sd15: tuple[Any, Any], apply: Any) -> None:
    """What it was trained from, whatever else has changed the weight by then."""
    model, _ = sd15
    weight = tiny.parameter(model, TO_Q_KEY).clone()
    before, tensors = tiny.make("full", weight), tiny.make("tlora", weight)

    if together:
        patched, _, _ = apply.files(model, {TO_Q: before}, {TO_Q: tensors})
    else:
        patched, _, _ = apply.files(apply.files(model, {TO_Q: before})[0], {TO_Q: tensors})

    with tiny.loaded(patched) as now:
        expected = tiny.changed(weight, (before, 1.0), (tensors, 1.0), base=weight)
        tiny.assert_weight(now(TO_Q_KEY), expected, steps=STEPS["tlora"])


def test_tlora_is_prepared_from_the_original_weight_of_a_model_in_use(
    sd15: tuple[Any, Any], apply: Any
) -> None:
    """Clones share their weights, and the one that is loaded has changed them in place."""
    import comfy.model_management

    model, _ = sd15
    weight = tiny.parameter(model, TO_Q_KEY).clone()
    full, tensors = tiny.make("full", weight), tiny.make("tlora", weight)
    in_use, _, _ = apply.files(model, {TO_Q: full})
    comfy.model_management.load_models_gpu([in_use], force_full_load=True)
    assert not torch.equal(tiny.parameter(model, TO_Q_KEY), weight)

    patched, _, _ = apply.files(model, {TO_Q: tensors})

    with tiny.loaded(patched) as now:
        expected = tiny.changed(weight, (tensors, 1.0))
        tiny.assert_weight(now(TO_Q_KEY), expected, steps=STEPS["tlora"])
    assert torch.equal(tiny.parameter(model, TO_Q_KEY), weight)


def test_the_report_names_the_layers_where_the_order_of_a_stack_counts(
    sd15: tuple[Any, Any], apply: Any
) -> None:
    model, _ = sd15
    other, other_key = list(LAYERS.items())[2]
    q, ff = (tiny.parameter(model, key) for key in (TO_Q_KEY, other_key))
    one = {TO_Q: tiny.make("dora", q, "1"), other: tiny.make("lora", ff, "1")}
    two = {TO_Q: tiny.make("ia3", q, "2"), other: tiny.make("dora", ff, "2")}

    _, _, report = apply.files(model, one, two)
    about_order = report.partition("order")[2]
    assert TO_Q in about_order
    assert other in about_order, "a plain LoRA counts for the norms that a DoRA takes after it"

    _, _, report = apply.files(model, {other: tiny.make("lora", ff)}, {other: tiny.make("lokr", ff)})
    assert "order" not in report


@pytest.mark.parametrize("from_core", [True, False])
def test_the_report_names_the_layers_that_an_earlier_node_has_changed(
    from_core: bool, sd15: tuple[Any, Any], apply: Any, folders: Path
) -> None:
    import nodes

    model, clip = sd15
    other, other_key = list(LAYERS.items())[2]
    q, ff = (tiny.parameter(model, key) for key in (TO_Q_KEY, other_key))
    earlier = {TO_Q: tiny.make("lora", q, "earlier")}
    tiny.save(folders / "loras" / "earlier.safetensors", earlier)
    if from_core:
        changed = nodes.LoraLoader().load_lora(model, clip, "earlier.safetensors", 0.8, 0.8)[0]
    else:
        changed = apply.files(model, earlier)[0]

    _, _, report = apply.files(changed, {TO_Q: tiny.make("dora", q), other: tiny.make("dora", ff)})
    about_order = report.partition("order")[2]
    assert TO_Q in about_order
    assert "earlier node" in about_order
    assert other not in about_order

    _, _, report = apply.files(changed, {TO_Q: tiny.make("lokr", q)})
    assert "order" not in report


def test_other_rows_of_a_fused_weight_do_not_meet(sd3: Any, apply: Any) -> None:
    block = "lora_transformer_transformer_blocks_0_attn_to_"
    fused = tiny.parameter(sd3, "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight")
    rows = fused.chunk(3)
    dora = {f"{block}q": tiny.make("dora", rows[0])}
    changed, _, _ = apply.files(sd3, {f"{block}k": tiny.make("lora", rows[1])})
    assert "order" not in apply.files(changed, dora)[2]
    changed, _, _ = apply.files(sd3, {f"{block}q": tiny.make("lora", rows[0])})
    assert f"{block}q" in apply.files(changed, dora)[2].partition("order")[2]


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("algo", ["lokr", "dora", "ia3"])
def test_core_lora_on_the_same_weight(
    ours_first: bool, algo: str, sd15: tuple[Any, Any], apply: Any, folders: Path
) -> None:
    import nodes

    model, clip = sd15
    weight = tiny.parameter(model, TO_Q_KEY).clone()
    core, ours = tiny.make("lora", weight, "core"), tiny.make(algo, weight, "ours")
    tiny.save(folders / "loras" / "core.safetensors", {TO_Q: core})

    def with_core(model: Any) -> Any:
        return nodes.LoraLoader().load_lora(model, clip, "core.safetensors", 0.8, 0.8)[0]

    if ours_first:
        patched = with_core(apply.files(model, {TO_Q: ours}, strength=0.6)[0])
        expected = tiny.changed(weight, (ours, 0.6), (core, 0.8))
    else:
        patched = apply.files(with_core(model), {TO_Q: ours}, strength=0.6)[0]
        expected = tiny.changed(weight, (core, 0.8), (ours, 0.6))

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(TO_Q_KEY), expected)
    assert torch.equal(tiny.parameter(model, TO_Q_KEY), weight)


def test_weights_in_half_precision_are_rounded_once(
    sd15: tuple[Any, Any], apply: Any, load: Callable[[str], Any]
) -> None:
    """A model that is kept in fp16, loaded whole: core upcasts, patches, and rounds on the way back."""
    import comfy.sd
    from lab import models, paths

    path = str(paths.MODELS / models.FILES["tiny_wan"][0])
    load("tiny_wan")  # builds the file
    model = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float16})
    layer, key = "lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q.weight"
    weight = tiny.parameter(model, key).clone()
    assert weight.dtype == torch.float16
    one, two = tiny.make("lora", weight, "1"), tiny.make("lokr", weight, "2")

    patched, _, _ = apply.files(model, {layer: one}, {layer: two}, strength=0.9)

    with tiny.loaded(patched) as now:
        assert now(key).dtype == torch.float16
        tiny.assert_weight(now(key), tiny.changed(weight, (one, 0.9), (two, 0.9)), steps=0.51)
    assert torch.equal(tiny.parameter(model, key), weight)
