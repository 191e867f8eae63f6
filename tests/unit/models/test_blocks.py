"""Blocks and kinds of layers, by names that no host is needed for."""

from __future__ import annotations

import pytest

from lycoris_algos.models import FAMILIES, KINDS, Role, families_of, role_in, role_of, text_role
from lycoris_algos.network.roles import named_roles


@pytest.mark.parametrize(
    ("path", "block", "kind"),
    [
        ("input_blocks.0.0", "input.0", "conv"),
        ("input_blocks.4.1.transformer_blocks.1.attn1.to_k", "input.4", "attn.k"),
        ("middle_block.1.transformer_blocks.0.attn2.to_v.weight", "middle", "cross.v"),
        ("output_blocks.8.0.skip_connection.bias", "output.8", "conv"),
        ("out.2", "final", "proj"),
        ("double_blocks.18.txt_mlp.2", "double.18", "ff"),
        ("single_blocks.37.linear1", "single.37", "fused"),
        ("single_blocks_37_modulation_lin", "single.37", "mod"),
        ("joint_blocks.3.x_block.attn2.qkv", "joint.3", "attn.qkv"),
        ("layers.29.attention.out", "layers.29", "attn.out"),
        ("blocks.12.cross_attn.k_img", "blocks.12", "cross.k"),
        ("transformer_blocks.0.attn.to_out.0", "blocks.0", "attn.out"),
        ("txt_in.individual_token_refiner.blocks.1.self_attn.proj", "refiner.1", "attn.out"),
        ("something.else", "other", "other"),
        ("blocks.3.something", "blocks.3", "other"),
    ],
)
def test_block_and_kind_of_a_path(path: str, block: str, kind: str) -> None:
    role = role_of(path)
    assert (role.block, role.kind) == (block, kind)


@pytest.mark.parametrize(
    ("path", "number", "block"),
    [
        ("text_model.encoder.layers.11.mlp.fc1", 1, "te.11"),
        ("lora_te2_text_model_encoder_layers_31_self_attn_q_proj", 2, "te2.31"),
        ("transformer.resblocks.5.attn.in_proj", 1, "te.5"),
        ("encoder.block.23.layer.1.DenseReluDense.wo", 3, "te3.23"),
        ("bert.encoder.layer.2.output.dense", 1, "te.2"),
        ("model.layers.7.mlp.up_proj", 1, "te.7"),
        ("text_model.embeddings.token_embedding", 2, "te2"),
        ("visual.blocks.3.attn.qkv", 1, "te_vision.3"),
    ],
)
def test_block_of_a_path_in_a_text_encoder(path: str, number: int, block: str) -> None:
    role = text_role(path, number)
    assert (role.block, role.kind) == (block, "text")


def test_a_name_in_a_file_tells_the_same_as_the_models_own() -> None:
    names = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q": Role("input", 4, "attn.q"),
        "lora_unet_down_blocks_0_downsamplers_0_conv": Role("input", 3, "conv"),
        "lora_unet_mid_block_resnets_1_conv1": Role("middle", None, "conv"),
        "lora_unet_up_blocks_2_resnets_2_conv_shortcut": Role("output", 8, "conv"),
        "lora_unet_up_blocks_0_upsamplers_0_conv": Role("output", 2, "conv"),
        "lora_unet_conv_in": Role("input", 0, "conv"),
        "lora_te1_text_model_encoder_layers_3_mlp_fc2": Role("te", 3, "text"),
        "lora_te2_text_model_encoder_layers_3_mlp_fc2": Role("te2", 3, "text"),
        "lora_unet_nonsense": Role("other", None, "other"),
    }
    assert named_roles(names) == names


def test_a_part_of_a_fused_layer_has_a_kind_of_its_own() -> None:
    names = {
        "transformer.single_transformer_blocks.7.attn.to_k": Role("single", 7, "attn.k"),
        "transformer.single_transformer_blocks.7.proj_mlp": Role("single", 7, "ff"),
        "transformer.transformer_blocks.7.attn.add_v_proj": Role("double", 7, "attn.v"),
        "transformer.transformer_blocks.7.attn.to_qkv": Role("double", 7, "attn.qkv"),
        "transformer.single_transformer_blocks.7.proj_out": Role("single", 7, "fused"),
    }
    assert named_roles(names) == names


def test_every_name_of_every_family_has_a_kind() -> None:
    for family in FAMILIES:
        for rule in family.rules:
            role = role_in(rule.name.replace("{}", "3"), family)
            assert role.kind in KINDS
            assert role.block == role_of(rule.native.replace("{}", "3")).block, rule.name
            assert role.kind != "other", f"{family.name}: {rule.name}"


def test_the_unets_of_stable_diffusion_are_told_apart() -> None:
    first = "input_blocks.0.0.weight"
    attention = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert [family.name for family in families_of({first, attention})] == ["sd15"]
    assert [family.name for family in families_of({first, "label_emb.0.0.weight"})] == ["sdxl"]


def test_a_name_longer_than_any_path_is_not_searched() -> None:
    start = "blocks.0.self_attn.q"
    assert role_of(start).block == "blocks.0"
    assert role_of(start + "_attn" * 200_000).block == "other"
