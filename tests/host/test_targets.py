"""Layer names to parameters: slices of fused weights, reordered ones, biases, text encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

QKV = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
ADALN = "diffusion_model.final_layer.adaLN_modulation.1.weight"


def bias_of(key: str) -> str:
    return key.removesuffix(".weight") + ".bias"


# ---- slices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["transformer.transformer_blocks.0.attn.", "lycoris_transformer_blocks_0_attn_"]
)
@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "dora", "oft", "glora"])
def test_split_queries_keys_and_values_change_their_slice_only(
    prefix: str, algo: str, sd3: Any, apply: Any
) -> None:
    weight = tiny.parameter(sd3, QKV).clone()
    q, k, v = weight.split(128)
    tensors = {"to_q": tiny.make(algo, q, "q"), "to_v": tiny.make("lora", v, "v")}

    patched, _, report = apply.files(sd3, {prefix + name: own for name, own in tensors.items()}, strength=0.8)

    assert "2 of 2 layers applied" in report
    with tiny.loaded(patched) as now:
        found = now(QKV).split(128)
        tiny.assert_weight(found[0], tiny.changed(q, (tensors["to_q"], 0.8)), "q", steps=4)
        assert torch.equal(found[1], k)
        tiny.assert_weight(found[2], tiny.changed(v, (tensors["to_v"], 0.8)), "v")
    assert torch.equal(tiny.parameter(sd3, QKV), weight)


def test_a_slice_takes_its_part_of_the_bias(sd3: Any, apply: Any) -> None:
    weight, bias = (tiny.parameter(sd3, key).clone() for key in (QKV, bias_of(QKV)))
    tensors = {**tiny.make("lora", weight[128:256]), "diff_b": torch.randn(128)}

    patched, _, _ = apply.files(sd3, {"transformer.transformer_blocks.0.attn.to_k": tensors})

    with tiny.loaded(patched) as now:
        expected = bias.double()
        expected[128:256] += tensors["diff_b"].double()
        tiny.assert_weight(now(bias_of(QKV)), expected, "bias")
        tiny.assert_weight(now(QKV)[128:256], tiny.changed(weight[128:256], (tensors, 1.0)))
        assert torch.equal(now(QKV)[:128], weight[:128])


def test_whole_and_split_names_stack_on_one_weight(sd3: Any, apply: Any) -> None:
    weight = tiny.parameter(sd3, QKV).clone()
    whole = tiny.make("lokr", weight, "whole")
    part = tiny.make("lora", weight[:128], "part")

    patched, _, _ = apply.files(
        sd3,
        {"lora_unet_joint_blocks_0_x_block_attn_qkv": whole},
        {"transformer.transformer_blocks.0.attn.to_q": part},
    )

    with tiny.loaded(patched) as now:
        expected = tiny.changed(weight, (whole, 1.0))
        expected[:128] = tiny.changed(expected[:128], (part, 1.0))
        tiny.assert_weight(now(QKV), expected)


# ---- functions --------------------------------------------------------------------------------------------


def swapped(value: Tensor) -> Tensor:
    """ComfyUI keeps scale and shift of this layer the other way round than diffusers."""
    shift, scale = value.chunk(2)
    return torch.cat((scale, shift))


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "full"])
def test_a_reordered_weight_is_changed_in_its_own_order(algo: str, sd3: Any, apply: Any) -> None:
    weight = tiny.parameter(sd3, ADALN).clone()
    tensors = tiny.make(algo, weight)

    patched, _, report = apply.files(sd3, {"transformer.norm_out.linear": tensors}, strength=-0.7)

    assert "1 of 1 layers applied" in report
    with tiny.loaded(patched) as now:
        delta = tiny.changed(weight, (tensors, -0.7)) - weight.double()
        tiny.assert_weight(now(ADALN), weight.double() + swapped(delta))
    assert torch.equal(tiny.parameter(sd3, ADALN), weight)


def test_a_stack_on_a_reordered_weight(sd3: Any, apply: Any) -> None:
    weight = tiny.parameter(sd3, ADALN).clone()
    one, two = tiny.make("lora", weight, "1"), tiny.make("loha", weight, "2")
    layer = "transformer.norm_out.linear"

    patched, _, _ = apply.files(sd3, {layer: one}, {layer: two})

    with tiny.loaded(patched) as now:
        delta = tiny.changed(weight, (one, 1.0), (two, 1.0)) - weight.double()
        tiny.assert_weight(now(ADALN), weight.double() + swapped(delta), steps=4)


@pytest.mark.parametrize("algo", ["dora", "oft", "ia3", "glora"])
def test_what_depends_on_the_weight_is_right_or_refused_on_a_reordered_one(
    algo: str, sd3: Any, apply: Any
) -> None:
    """It was trained on rows in another order than this model has them."""
    weight = tiny.parameter(sd3, ADALN).clone()
    own_order = swapped(weight)  # its own inverse
    tensors = tiny.make(algo, own_order)
    layer = "transformer.norm_out.linear"
    expected = swapped(tiny.changed(own_order, (tensors, 0.5)))

    patched, _, report = apply.files(sd3, {layer: tensors}, strength=0.5, on_unmatched="report only")

    if ADALN not in patched.patches:
        assert layer in report, "it is not applied, and the report does not say why"
        return
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(ADALN), expected, steps=4)


def test_the_bias_of_a_reordered_weight_is_reordered_too(sd3: Any, apply: Any) -> None:
    weight, bias = (tiny.parameter(sd3, key).clone() for key in (ADALN, bias_of(ADALN)))
    tensors = {**tiny.make("lora", weight), "diff_b": torch.randn_like(bias)}

    patched, _, _ = apply.files(sd3, {"transformer.norm_out.linear": tensors})

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(bias_of(ADALN)), bias.double() + swapped(tensors["diff_b"].double()), "bias")


# ---- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "key"),
    [
        ("tiny_wan", "lora_unet_blocks_1_ffn_0", "blocks.1.ffn.0.weight"),
        ("tiny_wan", "lycoris_blocks_1_ffn_0", "blocks.1.ffn.0.weight"),
        ("tiny_wan", "diffusion_model.blocks.1.cross_attn.k", "blocks.1.cross_attn.k.weight"),
        ("tiny_wan", "lora_unet_patch_embedding", "patch_embedding.weight"),
        ("tiny_hyvid", "lora_unet_single_blocks_0_linear1", "single_blocks.0.linear1.weight"),
        ("tiny_hyvid", "diffusion_model.double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.qkv.weight"),
        ("tiny_hyvid", "transformer.double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn.qkv.weight"),
        ("tiny_hyvid", "lycoris_double_blocks_0_txt_mlp_0", "double_blocks.0.txt_mlp.0.weight"),
        ("tiny_hyvid", "lora_unet_img_in_proj", "img_in.proj.weight"),
        ("tiny_sd3", "lora_unet_joint_blocks_1_x_block_mlp_fc1", "joint_blocks.1.x_block.mlp.fc1.weight"),
        ("tiny_sd3", "lycoris_transformer_blocks_1_ff_net_2", "joint_blocks.1.x_block.mlp.fc2.weight"),
        ("tiny_sd15", "lora_unet_conv_in", "input_blocks.0.0.weight"),
        ("tiny_sd15", "lora_unet_input_blocks_0_0", "input_blocks.0.0.weight"),
        ("tiny_sd15", "unet.conv_in", "input_blocks.0.0.weight"),
    ],
)
def test_names_of_every_model(
    name: str, layer: str, key: str, load: Callable[[str], Any], apply: Any
) -> None:
    model, _ = load(name)
    key = f"diffusion_model.{key}"
    weight = tiny.parameter(model, key).clone()
    tensors = tiny.make("lokr", weight)

    patched, _, _ = apply.files(model, {layer: tensors})

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), tiny.changed(weight, (tensors, 1.0)), layer)
    assert set(patched.patches) == {key}


def test_kohyas_oft_has_a_prefix_of_its_own(hyvid: Any, apply: Any) -> None:
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    weight = tiny.parameter(hyvid, key).clone()
    tensors = tiny.make("oft", weight)

    patched, _, _ = apply.files(hyvid, {"oft_unet_double_blocks_0_img_attn_proj": tensors})

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), tiny.changed(weight, (tensors, 1.0)), steps=4)


def test_two_names_of_one_weight_in_one_file(hyvid: Any, apply: Any) -> None:
    """Two changes of one weight: the first is used, and the report says so."""
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    weight = tiny.parameter(hyvid, key).clone()
    one, two = tiny.make("lora", weight, "1"), tiny.make("lora", weight, "2")
    names = ("diffusion_model.double_blocks.0.img_attn.proj", "lora_unet_double_blocks_0_img_attn_proj")

    patched, _, report = apply.files(hyvid, dict(zip(names, (one, two), strict=True)))

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), tiny.changed(weight, (one, 1.0)))
    assert f"{names[1]}: another change of the weight" in report
    assert "comes first in the file" in report


def test_parameters_that_are_no_weights(hyvid: Any, apply: Any) -> None:
    """HunyuanVideo's norms are called "scale", in its files at least."""
    key = "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale"
    value = tiny.parameter(hyvid, key).clone()
    tensors = {"diff": torch.randn_like(value)}

    patched, _, _ = apply.files(hyvid, {key: tensors})

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), value.double() + tensors["diff"].double())


# ---- text encoders ----------------------------------------------------------------------------------------

TEXT = "clip_l.transformer.text_model."
TEXT_LAYERS = {
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (
        "lora",
        "encoder.layers.0.self_attn.q_proj.weight",
    ),
    "lora_te_text_model_encoder_layers_3_mlp_fc1": ("lokr", "encoder.layers.3.mlp.fc1.weight"),
    "lora_te_text_model_encoder_layers_11_mlp_fc2": ("loha", "encoder.layers.11.mlp.fc2.weight"),
    "lora_te_text_model_encoder_layers_0_layer_norm1": ("norm", "encoder.layers.0.layer_norm1.weight"),
    "lora_te_text_model_encoder_layers_11_layer_norm2": ("norm", "encoder.layers.11.layer_norm2.weight"),
    "lora_te_text_model_final_layer_norm": ("norm", "final_layer_norm.weight"),
    "lora_te_text_model_embeddings_token_embedding": ("lora", "embeddings.token_embedding.weight"),
    "lora_te_text_model_embeddings_position_embedding": ("full", "embeddings.position_embedding.weight"),
}


@pytest.mark.parametrize(("prefix", "layers"), [("lora_te_", 8), ("lora_te1_", 6)])
def test_every_part_of_a_text_encoder(prefix: str, layers: int, sd15: tuple[Any, Any], apply: Any) -> None:
    model, clip = sd15
    tensors, keys, originals = {}, {}, {}
    for name, (algo, path) in list(TEXT_LAYERS.items())[:layers]:
        layer = name.replace("lora_te_", prefix)
        keys[layer] = TEXT + path
        originals[layer] = tiny.parameter(clip.patcher, keys[layer]).clone()
        tensors[layer] = tiny.make(algo, originals[layer], name)
    layer = f"{prefix}text_model_encoder_layers_3_mlp_fc1"
    tensors[layer]["diff_b"] = torch.randn(3072)
    originals_bias = {
        name: tiny.parameter(clip.patcher, bias_of(keys[name])).clone()
        for name, own in tensors.items()
        if "b_norm" in own or "diff_b" in own
    }

    unchanged, patched, report = apply.files(model, tensors, clip=clip, strength=0.0, strength_clip=0.6)

    assert unchanged.patches == model.patches
    assert f"{len(tensors)} of {len(tensors)} layers applied" in report
    with tiny.loaded(patched.patcher) as now:
        for name, original in originals.items():
            tiny.assert_weight(now(keys[name]), tiny.changed(original, (tensors[name], 0.6)), name)
        for name, original in originals_bias.items():
            expected = tiny.changed_bias(original, (tensors[name], 0.6))
            tiny.assert_weight(now(bias_of(keys[name])), expected, f"bias of {name}")
    for name, original in originals.items():
        assert torch.equal(tiny.parameter(clip.patcher, keys[name]), original), f"{name} is not restored"


def test_text_encoder_strength_is_its_own(sd15: tuple[Any, Any], apply: Any) -> None:
    model, clip = sd15
    unet_layer, unet_key = "lora_unet_conv_in", "diffusion_model.input_blocks.0.0.weight"
    text_layer, (_, path) = next(iter(TEXT_LAYERS.items()))
    of_unet, of_text = (
        tiny.parameter(model, unet_key).clone(),
        tiny.parameter(clip.patcher, TEXT + path).clone(),
    )
    tensors = {unet_layer: tiny.make("lora", of_unet), text_layer: tiny.make("lora", of_text)}

    stack = apply.stack(tensors, 0.5, strength_clip=-0.4)
    patched, patched_clip, _ = apply(model, stack, clip=clip, strength=1.6, strength_clip=0.5)

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(unet_key), tiny.changed(of_unet, (tensors[unet_layer], 0.8)))
    with tiny.loaded(patched_clip.patcher) as now:
        tiny.assert_weight(now(TEXT + path), tiny.changed(of_text, (tensors[text_layer], -0.2)))


def test_text_layers_without_a_clip_are_said_to_be_left_out(
    sd15: tuple[Any, Any], apply: Any, folders: Path
) -> None:
    model, clip = sd15
    text_layer, (_, path) = next(iter(TEXT_LAYERS.items()))
    tensors = {
        "lora_unet_conv_in": tiny.make(
            "lora", tiny.parameter(model, "diffusion_model.input_blocks.0.0.weight")
        ),
        text_layer: tiny.make("lora", tiny.parameter(clip.patcher, TEXT + path)),
    }

    patched, no_clip, report = apply.files(model, tensors, on_unmatched="error if anything is unmatched")

    assert no_clip is None
    assert "1 of 1 layers applied" in report
    assert "no CLIP is connected" in report
    assert len(patched.patches) == 1
