"""How keys are split and which trainer spells layers like that, on names as real files have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos.adapters import known_suffixes
from lycoris_algos.formats import (
    DIALECTS,
    UNKNOWN,
    WEAK_SUFFIXES,
    canonical_suffix,
    common_dialect,
    dialect_of,
    is_text_layer,
    split_key,
)

SUFFIXES = known_suffixes()

# ---- splitting ----------------------------------------------------------------------------------------

SPLITS = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_up.weight",
    ),
    "lora_unet_x.lora_mid.weight": ("lora_unet_x", "lora_mid.weight"),
    "lora_unet_x.alpha": ("lora_unet_x", "alpha"),
    "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": (
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "hada_w1_a",
    ),
    "lycoris_transformer_blocks_0_attn_to_q.lokr_w2": ("lycoris_transformer_blocks_0_attn_to_q", "lokr_w2"),
    "diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": (
        "diffusion_model.double_blocks.0.img_attn.qkv",
        "lokr_w1",
    ),
    "diffusion_model.double_blocks.0.img_attn.qkv.alpha": (
        "diffusion_model.double_blocks.0.img_attn.qkv",
        "alpha",
    ),
    "diffusion_model.input_blocks.1.0.emb_layers.1.diff_b": (
        "diffusion_model.input_blocks.1.0.emb_layers.1",
        "diff_b",
    ),
    "text_encoders.clip_l.transformer.text_model.final_layer_norm.w_norm": (
        "text_encoders.clip_l.transformer.text_model.final_layer_norm",
        "w_norm",
    ),
    "diffusion_model.blocks.0.attn.lora_A.weight": ("diffusion_model.blocks.0.attn", "lora_down.weight"),
    "diffusion_model.blocks.0.attn.lora_B.weight": ("diffusion_model.blocks.0.attn", "lora_up.weight"),
    "base_model.model.q.lora_A.default.weight": ("base_model.model.q", "lora_down.weight"),
    "base_model.model.q.lora_B.default.weight": ("base_model.model.q", "lora_up.weight"),
    "base.q.lora_magnitude_vector.default.weight": ("base.q", "lora_magnitude_vector"),
    "transformer.q.lora_magnitude_vector.weight": ("transformer.q", "lora_magnitude_vector"),
    "transformer.q.lora_magnitude_vector": ("transformer.q", "lora_magnitude_vector"),
    # A layer that is called like a tensor.
    "diffusion_model.alpha.alpha": ("diffusion_model.alpha", "alpha"),
    "diffusion_model.diff.lora_up.weight": ("diffusion_model.diff", "lora_up.weight"),
}


@pytest.mark.parametrize(("key", "expected"), SPLITS.items(), ids=SPLITS)
def test_keys_of_adapters(key: str, expected: tuple[str, str]) -> None:
    assert split_key(key, SUFFIXES) == expected


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.0.0.bias",
        "first_stage_model.decoder.conv_in.weight",
        "alpha",
        ".alpha",
        "lora_up.weight",
        "lora_unet_x.lora_up",
        "lora_unet_x.lora_up.weight.more",
        "lora_unet_x.lora_down.bias",
        "lora_unet_x_alpha",
        "",
        ".",
        "...",
        "emb_params",
        "bundle_emb.name.string_to_param.*",
        # Tensors of models are called that as well.
        "lora_unet_x.weight",
        "lora_unet_x.scale",
        "lora_unet_x.magnitude",
    ],
)
def test_keys_of_nothing_known(key: str) -> None:
    assert split_key(key, SUFFIXES) is None


@given(
    st.text(min_size=1).filter(lambda layer: not layer.startswith(".")),
    st.sampled_from(sorted(SUFFIXES - WEAK_SUFFIXES)),
)
def test_a_layer_of_any_name_is_found_again(layer: str, suffix: str) -> None:
    found = split_key(f"{layer}.{suffix}", SUFFIXES)
    assert found is not None
    # A layer may itself end in what is the beginning of a longer suffix; then the longer one is meant.
    assert f"{found[0]}.{found[1]}" == f"{layer}.{suffix}"
    assert len(found[1]) >= len(suffix)
    assert found[1] in SUFFIXES


@given(st.text(alphabet="ab.", max_size=12).filter(lambda key: not key.startswith(".")))
def test_the_longest_suffix_wins(key: str) -> None:
    suffixes = {"a", "b.a", "a.b.a"}
    expected = max(
        (s for s in suffixes if key.endswith(f".{s}") and len(key) > len(s) + 1), key=len, default=None
    )
    found = split_key(key, suffixes)
    assert (None if found is None else found[1]) == expected


def test_one_name_for_each_suffix() -> None:
    assert canonical_suffix("lora_A.weight") == "lora_down.weight"
    assert canonical_suffix("magnitude") == "lora_magnitude_vector"
    assert all(canonical_suffix(suffix) == suffix for suffix in SUFFIXES)


# ---- dialects -----------------------------------------------------------------------------------------

KOHYA_SD1 = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
    "lora_unet_up_blocks_3_resnets_2_conv1",
)
KOHYA_SD1_TEXT = (
    "lora_te_text_model_encoder_layers_11_mlp_fc2",
    "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
)
KOHYA_SDXL = (
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k",
    "lora_unet_middle_block_1_proj_in",
    "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2",
)
KOHYA_SDXL_TEXT = (
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
)
KOHYA_FLUX = (
    "lora_unet_double_blocks_0_img_attn_qkv",
    "lora_unet_single_blocks_37_linear1",
    "lora_unet_double_blocks_18_txt_mlp_2",
)
KOHYA_FLUX_TEXT = (
    "lora_te1_text_model_encoder_layers_0_self_attn_k_proj",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
)
KOHYA_SD3 = ("lora_unet_joint_blocks_0_context_block_attn_qkv", "lora_unet_joint_blocks_23_x_block_mlp_fc1")
KOHYA_SD3_TEXT = (
    "lora_te2_text_model_encoder_layers_3_mlp_fc1",
    "lora_te3_encoder_block_5_layer_1_DenseReluDense_wo",
)
CASCADE = ("lora_prior_unet_down_blocks_0_1_attention_attn_to_q",)
CASCADE_TEXT = ("lora_prior_te_text_model_encoder_layers_0_mlp_fc1",)
WRAPPER = (
    "lycoris_transformer_blocks_0_attn_to_q",
    "lycoris_single_transformer_blocks_3_proj_mlp",
    "lycoris_down_blocks_0_resnets_0_conv1",
    "lycoris_text_model_encoder_layers_0_mlp_fc1",
)
COMFY = (
    "diffusion_model.double_blocks.0.img_attn.qkv",
    "diffusion_model.layers.3.attention.out",
    "diffusion_model.input_blocks.1.1.proj_in",
)
COMFY_TEXT = (
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
)
NOBODY = (
    "",
    "unet",
    "lora",
    "lora_te",
    "lora_unet",
    "lycoris",
    "lora_te4_text_model",
    "lora_tex_text",
    "diffusion_model",
    "transformer.transformer_blocks.0.attn.to_q",
    "unet.down_blocks.0.attentions.0.proj_in",
    "model.diffusion_model.input_blocks.0.0",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "base_model.model.q_proj",
    "Lora_unet_x",
    " lora_unet_x",
)
SPOKEN = {
    "kohya": (
        (*KOHYA_SD1, *KOHYA_SDXL, *KOHYA_FLUX, *KOHYA_SD3, *CASCADE),
        (*KOHYA_SD1_TEXT, *KOHYA_SDXL_TEXT, *KOHYA_FLUX_TEXT, *KOHYA_SD3_TEXT, *CASCADE_TEXT),
    ),
    "lycoris": (WRAPPER, ()),
    "comfy": (COMFY, COMFY_TEXT),
}
EVERY = [(name, layer, text) for name, lists in SPOKEN.items() for text in (0, 1) for layer in lists[text]]


def test_every_dialect_has_names_here() -> None:
    assert {dialect.name for dialect in DIALECTS} == SPOKEN.keys()
    assert len({dialect.title for dialect in DIALECTS}) == len(DIALECTS)


@pytest.mark.parametrize(("name", "layer", "text"), EVERY, ids=[layer for _, layer, _ in EVERY])
def test_each_layer_is_spoken_by_one_dialect_only(name: str, layer: str, text: int) -> None:
    assert [dialect.name for dialect in DIALECTS if dialect.speaks(layer)] == [name]
    assert dialect_of(layer).name == name
    assert is_text_layer(layer) == bool(text)


@pytest.mark.parametrize("layer", NOBODY)
def test_names_that_no_dialect_speaks(layer: str) -> None:
    assert dialect_of(layer) is UNKNOWN
    assert not is_text_layer(layer)


@given(st.text())
def test_at_most_one_dialect_speaks_any_name(layer: str) -> None:
    assert sum(dialect.speaks(layer) for dialect in DIALECTS) <= 1
    assert not UNKNOWN.speaks(layer)


def test_text_names_begin_with_no_model_prefix() -> None:
    # is_text only looks at the beginning, so one list may not contain the other's beginnings.
    for dialect in DIALECTS:
        for text in dialect.text_prefixes:
            assert not text.startswith(dialect.model_prefixes)
            assert not any(prefix.startswith(text) for prefix in dialect.model_prefixes)


@pytest.mark.parametrize("name", SPOKEN)
def test_a_whole_file_of_one_dialect(name: str) -> None:
    model, text = SPOKEN[name]
    assert common_dialect((*model, *text)).name == name


def test_most_layers_decide() -> None:
    assert common_dialect([*KOHYA_SD1, *COMFY[:2]]).name == "kohya"
    assert common_dialect([*KOHYA_SD1[:1], *COMFY]).name == "comfy"
    assert common_dialect([*NOBODY, *COMFY]) is UNKNOWN
    assert common_dialect([]) is UNKNOWN
    assert common_dialect(iter(WRAPPER)).name == "lycoris"
