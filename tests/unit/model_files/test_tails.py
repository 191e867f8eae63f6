"""Layers under unknown prefixes: found by the longest end of their names that the model knows."""

from __future__ import annotations

import pytest
import torch
from checkpoint_shapes import clip

import lycoris_algos
from lycoris_algos.model_files import index_checkpoint

MODEL = {f"blocks.{n}.self_attn.{part}.weight": (8, 8) for n in range(4) for part in ("q", "o")}
MODEL["proj_out.weight"] = (8, 8)
TEXT = clip("cond_stage_model.transformer.", 8)
KEY = "blocks.2.self_attn.q.weight"


def key_of(layer: str, shape: tuple[int, int] = (8, 8)) -> str | None:
    own = lycoris_algos.from_tensors({f"{layer}.diff": torch.ones(shape)})
    placement = index_checkpoint({**MODEL, **TEXT}).place(
        own, lambda _, half, spots: half.check(own[layer], spots)
    )
    return placement.placed[layer].spots[0].key if layer in placement.placed else None


@pytest.mark.parametrize(
    "prefix",
    [
        *("model.diffusion_model.", "net.", "pipe.dit.", "transformer_2.", "transformer._orig_mod."),
        *("base_model.model.module.", "diffusion_model.net.", "pipe.transformer.", "a.b.c.d."),
    ],
)
def test_unknown_prefixes_of_dotted_names(prefix: str) -> None:
    assert key_of(f"{prefix}blocks.2.self_attn.q") == KEY


@pytest.mark.parametrize(
    "prefix", ["Some_video_I2V_lora_", "lora_dit_", "lora_unet__orig_mod_", "lora_net_", "lora_unet_dit_"]
)
def test_unknown_prefixes_of_flattened_names(prefix: str) -> None:
    assert key_of(f"{prefix}blocks_2_self_attn_q") == KEY


@pytest.mark.parametrize(
    "layer", ["lora_unet_blocks_2_self_attn_q_", "diffusion_model.blocks.2.self_attn.q_"]
)
def test_an_underscore_behind_the_name(layer: str) -> None:
    assert key_of(layer) == KEY


@pytest.mark.parametrize(
    "layer",
    [
        # Lists of blocks of other models.
        "single_blocks_2_self_attn_q",
        "lora_unet_single_blocks_2_self_attn_q",
        "lora_unet_noise_refiner_blocks_2_self_attn_q",
        "txt_in.token_refiner.blocks.2.self_attn.q",
        "llm_adapter.blocks.2.self_attn.q",
        "diffusion_model.vision.blocks.2.self_attn.q",
        # Below a number, or in no block at all.
        "lora_unet_down_blocks_0_proj_out",
        "up.0.blocks.2.self_attn.q",
        "net.proj_out",
        "lora_te_net_blocks_2_self_attn_q",
    ],
)
def test_names_of_something_else_find_nothing(layer: str) -> None:
    assert key_of(layer) is None


def test_attention_processors_of_a_text_encoder() -> None:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.to_q"
    key = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    shape = TEXT[key]
    assert key_of(layer, (shape[0], shape[1])) == key


def test_very_many_words_are_no_burden() -> None:
    assert key_of("a." * 5000 + "blocks.2.self_attn.q") is None
