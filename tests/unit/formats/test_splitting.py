"""How a key is split into a layer and a suffix, on names as real files have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos.adapters import known_suffixes
from lycoris_algos.formats import (
    WEAK_SUFFIXES,
    _suffixes,
    canonical_suffix,
    hcp,
    split_key,
)

SUFFIXES = known_suffixes()

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
    "transformer.q.lora_A": ("transformer.q", "lora_down.weight"),
    "blocks.0.attn.qkv_x.lora_B": ("blocks.0.attn.qkv_x", "lora_up.weight"),
    "blocks.0.self_attn.q.lora_A.default_0.weight": ("blocks.0.self_attn.q", "lora_down.weight"),
    "base_model.model.q.hada_w1_a.default": ("base_model.model.q", "hada_w1_a"),
    "base_model.model.q.oft_R.default.weight": ("base_model.model.q", "oft_R.weight"),
    "double_blocks.0.img_attn.qkv.lora_B.bias": ("double_blocks.0.img_attn.qkv", "lora_B.bias"),
    "diffusion_model.q.magnitude": None,
    "unet.mid_block.attentions.0.proj_in.lora.down.weight": (
        "unet.mid_block.attentions.0.proj_in",
        "lora_down.weight",
    ),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "lora_up.weight",
    ),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q",
        "lora_down.weight",
    ),
    "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out",
        "lora_up.weight",
    ),
    "double_blocks.0.processor.qkv_lora1.down.weight": (
        "double_blocks.0.processor.qkv_lora1",
        "lora_down.weight",
    ),
    "single_blocks.0.processor.proj_lora.up.weight": ("single_blocks.0.processor.proj", "lora_up.weight"),
    "lora:mid_block.attentions.0.proj_in.___.layer.W_down": (
        "lora:mid_block.attentions.0.proj_in",
        "lora_down.weight",
    ),
    "lora.mid_block.attentions.0.proj_in.___.layer.W_up": (
        "lora.mid_block.attentions.0.proj_in",
        "lora_up.weight",
    ),
    "lora.mid_block.attentions.0.proj_in.___.layer.lora_down.weight": (
        "lora.mid_block.attentions.0.proj_in",
        "lora_down.weight",
    ),
    # HCP's own LoRA multiplies by what it stores; LyCORIS' modules in it divide by the rank as everywhere.
    "lora.mid_block.attentions.0.proj_in.___.alpha": ("lora.mid_block.attentions.0.proj_in", "scale"),
    "plugin:mid_block.attentions.0.proj_in.___.alpha": ("plugin:mid_block.attentions.0.proj_in", "alpha"),
    "plugin:mid_block.attentions.0.proj_in.___.lokr_w1": (
        "plugin:mid_block.attentions.0.proj_in",
        "lokr_w1",
    ),
    # A layer that is called like a tensor.
    "diffusion_model.alpha.alpha": ("diffusion_model.alpha", "alpha"),
    "diffusion_model.diff.lora_up.weight": ("diffusion_model.diff", "lora_up.weight"),
}


@pytest.mark.parametrize(("key", "expected"), SPLITS.items(), ids=SPLITS)
def test_keys_of_adapters(key: str, expected: tuple[str, str] | None) -> None:
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


def test_no_suffix_has_more_dots_than_a_key_is_looked_at_for() -> None:
    spelled = {*known_suffixes(), *_suffixes._SPELLINGS, *(f"{hcp.JOINT}{name}" for name in known_suffixes())}
    assert max(name.count(".") for name in spelled) <= _suffixes.MOST_DOTS
