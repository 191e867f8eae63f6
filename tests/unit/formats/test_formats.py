"""Which trainer spells layers like that, and what paths they mean, on names as real files have them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lycoris_algos.adapters import known_suffixes
from lycoris_algos.formats import (
    DIALECTS,
    UNKNOWN,
    WEAK_SUFFIXES,
    Dialect,
    common_dialect,
    dialect_of,
    encoder_number,
    is_text_layer,
    model_paths,
    split_key,
    text_paths,
)

SUFFIXES = known_suffixes()

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
    "lycoris_layers_0_self_attn_q_proj",
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
ONETRAINER = (
    "lora_transformer_transformer_blocks_0_attn_to_q",
    "lora_transformer_single_transformer_blocks_3_proj_mlp",
)
ONETRAINER_TEXT = (
    "clip_l.text_model.encoder.layers.0.mlp.fc1",
    "clip_g.text_projection",
    "t5.encoder.block.0.layer.0.SelfAttention.q",
)
DIFFUSERS = (
    "transformer.transformer_blocks.0.attn.to_q",
    "unet.down_blocks.0.attentions.0.proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q",
    "prior.down_blocks.0.1.attention.attn.to_q",
    "unet.base_model.model.mid_block.attentions.0.proj_in",
)
DIFFUSERS_TEXT = (
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
    "text_encoder.base_model.model.text_model.encoder.layers.0.mlp.fc1",
)
PEFT = (
    "base_model.model.q_proj",
    "base_model.model.blocks.0.attn.qkv",
)
WRAPPER_TEXT = (
    "lycoris_text_model_encoder_layers_0_mlp_fc1",
    "lycoris_encoder_block_0_layer_0_SelfAttention_q",
    "lycoris_model_layers_0_self_attn_q_proj",
)
PEFT_TEXT = (
    "base_model.model.text_model.encoder.layers.0.mlp.fc1",
    "base_model.model.encoder.block.0.layer.0.SelfAttention.q",
    "base_model.model.model.layers.0.self_attn.q_proj",
)
HCP = (
    "lora.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora:down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "plugin.mid_block.attentions.0.proj_in",
    "plugin:mid_block.attentions.0.proj_in",
)
HCP_TEXT = (
    "lora:text_model.encoder.layers.0.self_attn.q_proj",
    "plugin.clip_B.text_model.encoder.layers.0.self_attn.q_proj",
    "lora.clip_bigG.text_model.encoder.layers.0.self_attn.q_proj",
)
BARE = (
    "blocks.0.self_attn.q",
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.processor.qkv_lora1",
    "transformer_blocks.0.attn.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q",
)
BARE_TEXT = ("text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q")
NOBODY = (
    "",
    "unet",
    "lora_ema.down_blocks.0.attentions.0.proj_in",
    "lora_te5_text_model",
    "lora",
    "lora_te",
    "lora_unet",
    "lycoris",
    "lora_tex_text",
    "diffusion_model",
    "model.diffusion_model.input_blocks.0.0",
    "Lora_unet_x",
    " lora_unet_x",
)
SPOKEN = {
    "kohya": (
        (*KOHYA_SD1, *KOHYA_SDXL, *KOHYA_FLUX, *KOHYA_SD3, *CASCADE),
        (*KOHYA_SD1_TEXT, *KOHYA_SDXL_TEXT, *KOHYA_FLUX_TEXT, *KOHYA_SD3_TEXT, *CASCADE_TEXT),
    ),
    "lycoris": (WRAPPER, WRAPPER_TEXT),
    "onetrainer": (ONETRAINER, ONETRAINER_TEXT),
    "comfy": (COMFY, COMFY_TEXT),
    "peft": (PEFT, PEFT_TEXT),
    "diffusers": (DIFFUSERS, DIFFUSERS_TEXT),
    "hcp": (HCP, HCP_TEXT),
    "bare": (BARE, BARE_TEXT),
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


def test_text_names_are_no_beginnings_of_model_names() -> None:
    # is_text only looks at the beginning.
    for dialect in DIALECTS:
        for text in dialect.text_prefixes:
            assert not any(prefix.startswith(text) for prefix in dialect.model_prefixes)


@pytest.mark.parametrize("name", SPOKEN)
def test_a_whole_file_of_one_dialect(name: str) -> None:
    model, text = SPOKEN[name]
    assert common_dialect((*model, *text)).name == name


def test_which_of_two_does_not_depend_on_the_order() -> None:
    assert common_dialect(["lora_unet_a", "lycoris_b"]) is common_dialect(["lycoris_b", "lora_unet_a"])


def test_most_layers_decide() -> None:
    assert common_dialect([*KOHYA_SD1, *COMFY[:2]]).name == "kohya"
    assert common_dialect([*KOHYA_SD1[:1], *COMFY]).name == "comfy"
    assert common_dialect([*NOBODY, *COMFY]) is UNKNOWN
    assert common_dialect([]) is UNKNOWN
    assert common_dialect(iter(WRAPPER)).name == "lycoris"


# ---- writing ------------------------------------------------------------------------------------------

#: Keys as the trainer itself writes them.
WRITTEN = {
    "kohya": ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", "lora_te1_x.alpha"),
    "lycoris": ("lycoris_x_to_q.lokr_w2_b", "lycoris_x_norm1.w_norm"),
    "onetrainer": (
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
        "lora_transformer_transformer_blocks_0_attn_to_q.dora_scale",
        "lora_transformer_transformer_blocks_0_attn_to_q.oft_R.weight",
    ),
    "comfy": ("diffusion_model.blocks.0.attn.lora_up.weight", "text_encoders.x.hada_w1_a"),
    "peft": ("base_model.model.x.lora_A.weight", "base_model.model.x.oft_R.weight"),
    "diffusers": (
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight",
        "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector",
    ),
    "hcp": (
        "lora:mid_block.attentions.0.proj_in.___.layer.W_down",
        "lora.mid_block.attentions.0.proj_in.___.layer.W_up",
        "lora.clip_B.text_model.encoder.layers.0.mlp.fc1.___.alpha",
        "plugin.mid_block.attentions.0.proj_in.___.hada_w1_a",
        "plugin:mid_block.attentions.0.proj_in.___.alpha",
        "lora:mid_block.attentions.0.proj_in.alpha",
    ),
    "bare": ("double_blocks.0.img_attn.qkv.lora_A.weight", "blocks.0.self_attn.q.lora_B.weight"),
}


def test_every_dialect_is_written_here() -> None:
    assert {dialect.name for dialect in DIALECTS} == WRITTEN.keys()


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in WRITTEN.items() for key in keys])
def test_what_was_read_is_written_again(name: str, key: str) -> None:
    found = split_key(key, SUFFIXES)
    assert found is not None
    dialect = dialect_of(found[0])
    assert dialect.name == name
    assert dialect.render(*found) == key


@given(
    st.sampled_from([(dialect, prefix) for dialect in DIALECTS for prefix in dialect.model_prefixes]),
    st.from_regex(r"[a-z]+(_[a-z]+)?(\.[0-9a-z]+){0,2}", fullmatch=True),
    st.sampled_from(sorted(SUFFIXES - WEAK_SUFFIXES)),
)
@example((next(dialect for dialect in DIALECTS if dialect.name == "hcp"), "lora:"), "a", "alpha")
def test_what_was_written_is_read_again(chosen: tuple[Dialect, str], path: str, suffix: str) -> None:
    dialect, prefix = chosen
    assert split_key(dialect.render(prefix + path, suffix), SUFFIXES) == (prefix + path, suffix)


# ---- paths --------------------------------------------------------------------------------------------

PATHS = {
    "lora_unet_double_blocks_0_img_attn_qkv": "double_blocks_0_img_attn_qkv",
    "lora_unet__blocks_0_cross_attn_k": "blocks_0_cross_attn_k",
    "lora_prior_unet_down_blocks_0": "down_blocks_0",
    "lycoris_transformer_blocks_0_attn_to_q": "transformer_blocks_0_attn_to_q",
    "lora_transformer_transformer_blocks_0_attn_to_q": "transformer_blocks_0_attn_to_q",
    "transformer.transformer_blocks.0.attn.to_q": "transformer_blocks.0.attn.to_q",
    "unet.base_model.model.mid_block.attentions.0.proj_in": "mid_block.attentions.0.proj_in",
    "diffusion_model.blocks.0.attn": "blocks.0.attn",
    "base_model.model.blocks.0.attn": "blocks.0.attn",
    "lora:mid_block.attentions.0.proj_in": "mid_block.attentions.0.proj_in",
    "plugin.mid_block.attentions.0.proj_in": "mid_block.attentions.0.proj_in",
    "unet.mid_block.x.attn1.processor.to_q": "mid_block.x.attn1.to_q",
    "unet.mid_block.x.attn1.processor.to_out": "mid_block.x.attn1.to_out.0",
    "double_blocks.0.processor.qkv_lora1": "double_blocks.0.qkv_lora1",
    "diffusion_model.layers.0.attn.processor.img_to_q": "layers.0.attn.processor.img_to_q",  # Boogu
    "blocks.0.self_attn.q": "blocks.0.self_attn.q",
}
TEXT_PATHS = {
    "lora_te_text_model_final_layer_norm": "text_model_final_layer_norm",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": "encoder_block_0_layer_0_SelfAttention_q",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": "text_model.encoder.layers.0.mlp.fc1",
    "text_encoder.base_model.model.text_model.x": "text_model.x",
    "text_encoders.clip_l.transformer.text_model.x": "clip_l.transformer.text_model.x",
    "base_model.model.text_model.x": "text_model.x",
    "lycoris_text_model_x": "text_model_x",
    "clip_g.text_projection": "clip_g.text_projection",
    "t5.encoder.block.0": "t5xxl.encoder.block.0",
    "lora:text_model.encoder.layers.0.mlp.fc1": "text_model.encoder.layers.0.mlp.fc1",
    "plugin.clip_bigG.text_model.x": "clip_g.text_model.x",
    "text_model.encoder.layers.0.mlp.fc1": "text_model.encoder.layers.0.mlp.fc1",
}


@pytest.mark.parametrize(("layer", "path"), PATHS.items(), ids=PATHS)
def test_paths_in_a_model(layer: str, path: str) -> None:
    assert path in list(model_paths(layer))


@pytest.mark.parametrize(("layer", "path"), TEXT_PATHS.items(), ids=TEXT_PATHS)
def test_paths_in_a_text_encoder(layer: str, path: str) -> None:
    assert path in list(text_paths(layer))


@given(st.text())
def test_a_name_may_always_mean_itself(layer: str) -> None:
    assert next(iter(text_paths(layer))) == layer
    assert next(iter(model_paths(layer))) == layer.replace(".processor.", ".")


@pytest.mark.parametrize(
    ("layer", "number"),
    [
        ("lora_te_text_model_x", None),
        ("lora_te1_text_model_x", 1),
        ("lora_te3_encoder_block", 3),
        ("text_encoder.text_model.x", None),
        ("text_encoder_2.text_model.x", 2),
        ("text_encoders.clip_l.x", None),
        ("lycoris_text_model_x", None),
    ],
)
def test_numbers_of_text_encoders(layer: str, number: int | None) -> None:
    assert encoder_number(layer) == number
