"""Model families as data: rules that are sound by themselves, and what a file was made for by its names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos.models import (
    FAMILIES,
    Family,
    FusedRows,
    Located,
    Rule,
    diffusers_names_in,
    identify,
    layer_of,
    names_in,
    split_names,
)
from lycoris_algos.models._base import GROUPED_QKV, KV, QKV, QKV_MLP, QKV_OF_MLP, aliases, fused

every_family = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])

# ---- rows of fused weights ----------------------------------------------------------------------------


def covered(parts: tuple[FusedRows, ...], rows: int, columns: int) -> list[tuple[int, int]]:
    found = [part.of(rows, columns) for part in parts]
    return [rows_of for rows_of in found if rows_of is not None]


@given(st.integers(1, 64), st.integers(1, 64))
def test_parts_follow_one_another_and_leave_nothing(size: int, more: int) -> None:
    for parts, rows, columns in (
        (QKV, 3 * size, more),
        (KV, 2 * size, more),
        (QKV_MLP, 3 * size + more, size),
        (GROUPED_QKV, size + 2 * more, size),
    ):
        found = covered(parts, rows, columns)
        assert len(found) == len(parts)
        assert [start for start, _ in found] == [
            sum(count for _, count in found[:n]) for n in range(len(found))
        ]
        assert sum(count for _, count in found) == rows


def test_parts_of_known_weights() -> None:
    assert covered(QKV, 9216, 3072) == [(0, 3072), (3072, 3072), (6144, 3072)]
    assert covered(QKV_MLP, 21504, 3072) == [(0, 3072), (3072, 3072), (6144, 3072), (9216, 12288)]
    assert covered(GROUPED_QKV, 3840, 2304) == [(0, 2304), (2304, 768), (3072, 768)]
    assert QKV_OF_MLP.of(21504, 3072) == (0, 9216)


@pytest.mark.parametrize(
    ("part", "rows", "columns"),
    [
        (QKV[0], 10, 4),  # no whole number of rows
        (QKV_MLP[3], 12, 4),  # nothing is left for it
        (QKV_MLP[2], 10, 4),  # more than there is
        (GROUPED_QKV[1], 9, 4),
    ],
)
def test_rows_that_are_not_there(part: FusedRows, rows: int, columns: int) -> None:
    assert part.of(rows, columns) is None


# ---- rules --------------------------------------------------------------------------------------------


def test_names_are_unique() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert len({family.title for family in FAMILIES}) == len(FAMILIES)


@every_family
def test_rules_are_sound(family: Family) -> None:
    assert family.marks
    assert family.signs or family.labels
    for pattern in family.signs:
        re.compile(pattern)
    for rule in family.rules:
        assert rule.name.count("{}") == rule.native.count("{}") <= 1, rule
        assert not rule.native.endswith((".weight", ".bias")), rule
        assert not rule.name.endswith((".weight", ".bias")), rule
        assert not (rule.swapped and rule.rows), rule


@every_family
def test_a_name_has_one_meaning(family: Family) -> None:
    meanings: dict[str, set[tuple[str, FusedRows | None]]] = {}
    for rule in family.rules:
        meanings.setdefault(rule.name, set()).add((rule.native, rule.rows))
    several = {name: found for name, found in meanings.items() if len(found) > 1}
    assert several == {}


@every_family
def test_marks_are_no_other_familys(family: Family) -> None:
    parameters = dict.fromkeys(family.marks)
    assert [other.name for other in FAMILIES if other.owns(parameters)] == (
        [family.name] if family.marks else []
    )


SMALL = Family(
    name="small",
    title="Small",
    marks=("stem.weight",),
    rules=(
        Rule("other.{}.q", "blocks.{}.qkv", QKV[0]),
        Rule("other.{}.k", "blocks.{}.qkv", QKV[1]),
        Rule("other.{}.mlp", "blocks.{}.mlp.0"),
        Rule("other.{}.norm", "blocks.{}.norm"),
        Rule("out", "final.1", swapped=True),
        Rule("start", "stem"),
    ),
)


def test_rules_on_a_model() -> None:
    shapes: Mapping[str, tuple[int, ...]] = {
        "stem.weight": (8, 3),
        "blocks.0.qkv.weight": (12, 4),
        "blocks.11.qkv.weight": (12, 4),
        "blocks.11.mlp.0.weight": (16, 4),
        "blocks.11.mlp.2.weight": (4, 16),
        "blocks.0.norm.scale": (4,),
        "blocks.1.norm.weight": (4,),
        "final.1.weight": (8, 4),
    }
    assert dict(SMALL.names(shapes)) == {
        "other.0.q": Located("blocks.0.qkv.weight", (0, 4)),
        "other.0.k": Located("blocks.0.qkv.weight", (4, 4)),
        "other.11.q": Located("blocks.11.qkv.weight", (0, 4)),
        "other.11.k": Located("blocks.11.qkv.weight", (4, 4)),
        "other.11.mlp": Located("blocks.11.mlp.0.weight"),
        "other.0.norm": Located("blocks.0.norm.scale"),
        "other.1.norm": Located("blocks.1.norm.weight"),
        "out": Located("final.1.weight", None, swapped=True),
        "start": Located("stem.weight"),
    }


def test_rows_that_a_weight_cannot_have_make_no_name() -> None:
    assert dict(SMALL.names({"blocks.0.qkv.weight": (13, 4)})) == {}
    assert dict(SMALL.names({"blocks.0.qkv.weight": (12,)})) == {}


def test_a_model_of_no_family_has_no_names() -> None:
    assert list(names_in({"conv.weight": (3, 3)})) == []
    assert list(diffusers_names_in({"conv.weight": (3, 3)})) == []


def test_names_of_other_programs_are_none_of_diffusers() -> None:
    family = Family(
        name="x",
        title="X",
        rules=(Rule("a", "own"), *aliases((Rule("b", "own"),)), *fused("qkv", ["q", "k", "v"], QKV)),
    )
    shapes = {"own.weight": (4, 4), "qkv.weight": (12, 4), "same.weight": (4, 4), "scale": (4,)}
    assert [name for name, _ in family.names(shapes)] == ["a", "b", "q", "qkv.0", "k", "qkv.1", "v", "qkv.2"]
    assert [name for name, _ in family.diffusers_names(shapes)] == ["a", "q", "k", "v"]
    kept = dict(replace(family, keeps_names=True).diffusers_names(shapes))
    assert kept.keys() == {"a", "q", "k", "v", "same", "scale"}, "a layer that diffusers splits is not kept"
    assert kept["same"] == Located("same.weight")


def test_paths_may_begin_inside_a_component() -> None:
    family = Family(name="x", title="X", component="inner.")
    found = dict(family.names({"inner.a.weight": (4, 4), "inner.table": (4,), "outer.a.weight": (4, 4)}))
    assert found == {"a": Located("inner.a.weight"), "table": Located("inner.table")}


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("blocks.0.mlp.0.weight", "blocks.0.mlp.0"),
        ("img_attn.norm.query_norm.scale", "img_attn.norm.query_norm"),
        ("img_attn.norm.query_norm.weight", "img_attn.norm.query_norm"),
        ("img_attn_norm_query_norm_scale", "img_attn_norm_query_norm"),
        ("distilled_guidance_layer.norms.3.scale", "distilled_guidance_layer.norms.3"),
        ("distilled_guidance_layer_norms_3_scale", "distilled_guidance_layer_norms_3"),
        ("attn.qknorm.qnorm.scale", "attn.qknorm.qnorm"),
        ("img_attn.norm.query_norm", "img_attn.norm.query_norm"),
        ("txtmlp.0.scale", "txtmlp.0.scale"),  # no norm by its name
        ("scale_shift_table", "scale_shift_table"),
        ("norm_scale_shift", "norm_scale_shift"),
        ("", ""),
    ],
)
def test_the_weight_of_a_norm_has_one_name(parameter: str, layer: str) -> None:
    assert layer_of(parameter) == layer


def test_halves_are_swapped_where_they_are_all() -> None:
    rule = Rule("norm.{}", "blocks.{}.norm", swapped_pair=True)
    family = Family(name="x", title="X", rules=(rule,))
    found = dict(family.names({"blocks.0.norm.weight": (24, 4), "blocks.1.norm.weight": (8, 4)}))
    assert {name: located.swapped for name, located in found.items()} == {"norm.0": False, "norm.1": True}


# ---- fused layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("blocks_0_attn_qkv", ("blocks_0_attn_to_q", "blocks_0_attn_to_k", "blocks_0_attn_to_v")),
        ("blocks_0_attn_to_qkv", ("blocks_0_attn_to_q", "blocks_0_attn_to_k", "blocks_0_attn_to_v")),
        ("h_0_attn_in_proj", ("h_0_attn_q_proj", "h_0_attn_k_proj", "h_0_attn_v_proj")),
        ("blocks_0_self_attn_qkv", ("blocks_0_self_attn_q", "blocks_0_self_attn_k", "blocks_0_self_attn_v")),
        ("b_0_attn2_to_kv", ("b_0_attn2_to_k", "b_0_attn2_to_v")),
        ("b_0_cross_attn_kv_linear", ("b_0_cross_attn_k", "b_0_cross_attn_v")),
        ("b_0_attn_to_added_qkv", ("b_0_attn_add_q_proj", "b_0_attn_add_k_proj", "b_0_attn_add_v_proj")),
        ("s_0_linear1", ("s_0_to_q", "s_0_to_k", "s_0_to_v", "s_0_proj_mlp")),
    ],
)
def test_parts_of_fused_layers(path: str, parts: tuple[str, ...]) -> None:
    assert parts in list(split_names(path))


@pytest.mark.parametrize("path", ["", "qkv", "blocks_0_attn_to_q", "blocks_0_mlp_fc1", "linear1", "x_qkvs"])
def test_layers_that_are_not_fused(path: str) -> None:
    assert list(split_names(path)) == []


def test_tencents_names_with_the_fused_layers_apart() -> None:
    refiner = "txt_in.individual_token_refiner.blocks.0.self_attn"
    shapes = {f"{refiner}.qkv.weight": (24, 8), "single_blocks.3.linear1.weight": (56, 8)}
    shapes |= {f"double_blocks.2.{stream}_attn.qkv.weight": (24, 8) for stream in ("img", "txt")}
    known = dict(names_in(shapes))
    for number, part in enumerate("qkv"):
        rows = (8 * number, 8)
        for layer in (refiner, "double_blocks.2.img_attn", "double_blocks.2.txt_attn"):
            assert known[f"{layer}_{part}"] == Located(f"{layer}.qkv.weight", rows)
        assert known[f"single_blocks.3.linear1_{part}"] == Located("single_blocks.3.linear1.weight", rows)
    assert known["single_blocks.3.linear1_mlp"] == Located("single_blocks.3.linear1.weight", (24, 32))


def test_wans_vace_blocks_under_diffusers_names() -> None:
    native = ("patch_embedding", "blocks.0.self_attn.q", "blocks.0.cross_attn.q")
    vace = {
        "attn1.to_q": "self_attn.q",
        "attn2.to_out.0": "cross_attn.o",
        "ffn.net.2": "ffn.2",
        "proj_in": "before_proj",
        "proj_out": "after_proj",
    }
    shapes = {
        f"{path}.weight": (8, 8) for path in (*native, *(f"vace_blocks.1.{own}" for own in vace.values()))
    }
    known = dict(names_in(shapes))
    for other, own in vace.items():
        assert known[f"vace_blocks.1.{other}"] == Located(f"vace_blocks.1.{own}.weight")


# ---- what a file was made for -------------------------------------------------------------------------

MADE_FOR = {
    "Krea 2": (
        "diffusion_model.blocks.3.attn.wq",
        "transformer.text_fusion.layerwise_blocks.0.attn.to_q",
        "lora_unet_blocks_3_mlp_gate",
        "transformer.transformer_blocks.27.ff.up",
    ),
    "Kandinsky 5": (
        "transformer.visual_transformer_blocks.0.self_attention.to_query",
        "lora_unet_text_transformer_blocks_1_feed_forward_in_layer",
    ),
    "Ernie Image": ("transformer.layers.0.mlp.linear_fc2", "lora_unet_layers_3_self_attention_to_q"),
    "ACE-Step 1.5": (
        "base_model.model.layers.0.cross_attn.q_proj",
        "lycoris_layers_0_cross_attn_o_proj",
    ),
    "LTX-2": (
        "diffusion_model.transformer_blocks.0.audio_to_video_attn.to_q",
        "transformer.transformer_blocks.0.audio_ff.net.2",
    ),
    "Stable Diffusion 1 or 2": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2",
        "lora_te_text_model_encoder_layers_11_mlp_fc2",
    ),
    "SDXL": (
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        "lora_unet_output_blocks_0_1_transformer_blocks_9_ff_net_2",
        "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
    ),
    "Stable Cascade": ("lora_prior_unet_down_blocks_0_1_attention_attn_to_q",),
    "Flux": (
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_single_blocks_37_linear1",
        "lora_te1_text_model_encoder_layers_0_self_attn_k_proj",
    ),
    "Chroma": (
        "diffusion_model.double_blocks.0.img_attn.qkv",
        "diffusion_model.distilled_guidance_layer.in_proj",
    ),
    "Flux 2": (
        "transformer.transformer_blocks.0.ff_context.linear_in",
        "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    ),
    "HunyuanVideo": (
        "lora_unet_double_blocks_0_img_mlp_fc1",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_single_blocks_0_linear1",
    ),
    "Wan": ("lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.cross_attn.k_img"),
    "Lumina 2": ("lora_unet_layers_0_attention_qkv", "lora_unet_noise_refiner_0_feed_forward_w1"),
    "Z-Image": ("diffusion_model.layers.0.attention.to_q", "diffusion_model.layers.0.adaLN_modulation.0"),
    "Stable Diffusion 3": ("lora_unet_joint_blocks_0_context_block_attn_qkv",),
    "Qwen-Image": (
        "lora_unet_transformer_blocks_0_img_mlp_net_0_proj",
        "lora_unet_transformer_blocks_0_txt_mod_1",
    ),
    "HiDream": ("lycoris_double_stream_blocks_0_block_attn1_to_q",),
    "PixArt": ("lora_unet_blocks_0_cross_attn_kv_linear",),
    "AuraFlow": ("transformer.joint_transformer_blocks.0.attn.to_q",),
    "HunyuanDiT": ("base_model.model.blocks.0.attn1.Wqkv",),
    "Cosmos Predict 2": ("lora_unet_blocks_0_adaln_modulation_self_attn_1",),
    "Mochi": ("blocks.0.attn.qkv_x",),
}


@pytest.mark.parametrize(("title", "layers"), MADE_FOR.items(), ids=MADE_FOR)
def test_what_a_file_was_made_for(title: str, layers: tuple[str, ...]) -> None:
    assert identify(layers) == title


SHARED = {
    "attention of SD 3, Flux' first blocks and Qwen-Image, diffusers": (
        "transformer.transformer_blocks.{}.attn.to_q",
        "transformer.transformer_blocks.{}.attn.add_q_proj",
    ),
    "the same, flattened": ("lora_transformer_transformer_blocks_{}_attn_to_q",),
    "attention of LTX-Video and PixArt, diffusers": ("transformer.transformer_blocks.{}.attn1.to_q",),
    "attention of Wan and HunyuanDiT, diffusers": ("transformer.blocks.{}.attn1.to_q",),
    "attention of Lumina 2 and OmniGen 2, diffusers": ("transformer.layers.{}.attn.to_q",),
    "the timestep's norm of LTX-Video and PixArt": ("transformer.adaln_single.linear",),
}


@pytest.mark.parametrize("templates", SHARED.values(), ids=SHARED)
def test_names_that_several_families_have_tell_none(templates: tuple[str, ...]) -> None:
    layers = [template.format(number) for template in templates for number in range(24)]
    assert identify(layers) is None


@pytest.mark.parametrize("block", ["input_blocks_4_1", "middle_block_1", "output_blocks_3_1"])
def test_original_names_of_small_unets_are_not_the_large_ones(block: str) -> None:
    assert identify([f"lora_unet_{block}_transformer_blocks_0_attn1_to_q"]) == "Stable Diffusion 1 or 2"
    assert identify([f"lora_unet_{block}_transformer_blocks_1_attn1_to_q"]) == "SDXL"


def test_the_number_of_blocks_tells_relatives_apart() -> None:
    layer = "lora_unet_double_blocks_{}_img_attn_qkv"
    assert identify([layer.format(number) for number in range(19)]) == "Flux"
    assert identify([layer.format(number) for number in range(20)]) == "HunyuanVideo"
    assert identify([f"lora_unet_single_blocks_{number}_linear1" for number in range(48)]) == "Flux 2"


def test_metadata_decides_between_families_of_the_same_layers() -> None:
    layers = ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1")
    assert identify(layers, {"ss_base_model_version": "chroma"}) == "Chroma"
    assert identify(layers, {"modelspec.architecture": "hunyuan-image-2.1/lora"}) == "HunyuanVideo"
    assert identify(layers, {"modelspec.architecture": "flux-1-dev/lora"}) == "Flux"
    # Names are believed before metadata that cannot be right.
    assert identify(layers, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}) == "Flux"


def test_metadata_alone() -> None:
    text = ("lora_te_text_model_encoder_layers_0_mlp_fc1",)
    assert identify(text) is None
    assert identify(text, {"ss_base_model_version": "sdxl_base_v1-0"}) == "SDXL"
    assert identify(text, {"modelspec.architecture": "hunyuan-dit-g2/lora"}) == "HunyuanDiT"
    assert identify((), {"modelspec.architecture": "something new"}) is None


@given(st.lists(st.text()))
def test_strange_names_are_no_errors(layers: list[str]) -> None:
    identify(layers, {"ss_base_model_version": "".join(layers)})
