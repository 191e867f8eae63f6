"""``load`` of a file that is something else: what it is, and what to do with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lycoris_algos import (
    FileFormatError,
    NotAnAdapterError,
    from_tensors,
    load,
)


def zeros(*keys: str) -> dict[str, Tensor]:
    return {key: torch.zeros(2, 2) for key in keys}


OTHERS = {
    "SD1 checkpoint": (
        zeros(
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            "first_stage_model.decoder.conv_in.weight",
            "model.diffusion_model.input_blocks.0.0.weight",
            "model.diffusion_model.time_embed.0.bias",
        ),
        ("a checkpoint", "Load Checkpoint"),
    ),
    "SDXL checkpoint": (
        zeros(
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
            "first_stage_model.encoder.conv_in.weight",
            "model.diffusion_model.label_emb.0.0.weight",
        ),
        ("a checkpoint", "Load Checkpoint"),
    ),
    "Flux model": (
        zeros("double_blocks.0.img_attn.qkv.weight", "img_in.weight", "single_blocks.0.linear1.weight"),
        ("a diffusion model", "Load Diffusion Model"),
    ),
    "diffusers UNet": (
        zeros("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.weight"),
        ("a diffusion model in diffusers' form",),
    ),
    "CLIP": (
        zeros(
            "text_model.encoder.layers.0.mlp.fc1.weight", "text_model.embeddings.position_embedding.weight"
        ),
        ("a text encoder", "Load CLIP"),
    ),
    "T5": (
        zeros("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"),
        ("a text encoder", "Load CLIP"),
    ),
    "Qwen": (zeros("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"), ("a text encoder",)),
    "VAE": (
        zeros(
            "decoder.conv_in.weight",
            "encoder.down.0.block.0.conv1.weight",
            "decoder.up.0.block.0.conv1.weight",
        ),
        ("a VAE", "Load VAE"),
    ),
    "diffusers VAE": (
        zeros(
            "decoder.up_blocks.0.resnets.0.conv1.weight",
            "encoder.down_blocks.0.resnets.0.conv1.weight",
            "quant_conv.weight",
        ),
        ("a VAE", "Load VAE"),
    ),
    "embedding": (zeros("emb_params"), ("an embedding", "embeddings folder")),
    "SDXL embedding": (zeros("clip_g", "clip_l"), ("an embedding", "embeddings folder")),
    "A1111 embedding": (zeros("string_to_param.*"), ("an embedding", "embeddings folder")),
    "ControlNet": (
        zeros("control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"),
        ("a ControlNet", "Load ControlNet"),
    ),
    "diffusers ControlNet": (
        zeros(
            "conv_in.weight",
            "controlnet_cond_embedding.conv_in.weight",
            "controlnet_down_blocks.0.weight",
            "down_blocks.0.resnets.0.conv1.weight",
        ),
        ("a ControlNet", "Load ControlNet"),
    ),
}


@pytest.mark.parametrize(("stored", "words"), OTHERS.values(), ids=OTHERS)
def test_what_it_is_and_what_to_do(stored: dict[str, Tensor], words: tuple[str, ...], tmp_path: Path) -> None:
    save_file(stored, tmp_path / "other.safetensors")
    with pytest.raises(NotAnAdapterError) as caught:
        load(tmp_path / "other.safetensors")
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.count("other.safetensors") == 1


def test_an_empty_file(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(NotAnAdapterError, match=r"'empty\.safetensors' is empty"):
        load(tmp_path / "empty.safetensors")


def test_a_file_of_strange_tensors_shows_one() -> None:
    with pytest.raises(
        NotAnAdapterError, match=r"holds no adapter .* 2 tensors, the first is 'strange\.one'"
    ):
        from_tensors(zeros("strange.one", "strange.two"), name="x")


def test_a_file_of_stray_alphas_only() -> None:
    with pytest.raises(NotAnAdapterError, match="nothing in this layer is scaled by an alpha"):
        from_tensors({"lora_unet_a.alpha": torch.tensor(1.0)}, name="x")


@pytest.mark.parametrize("layer", ["diffusion_model.blocks.0.attn", "lora_unet_blocks_0_attn"])
def test_an_adapter_of_an_unknown_kind_is_not_taken_for_a_model(layer: str) -> None:
    stored = zeros(f"{layer}.vera_lambda_b", f"{layer}.vera_lambda_d")
    with pytest.raises(NotAnAdapterError) as caught:
        from_tensors(stored, name="x")
    assert "a diffusion model" not in str(caught.value)
    assert "vera_lambda_b" in str(caught.value)


@pytest.mark.parametrize(
    "suffix", ["q_loras.down.weight", "q.lora.first.weight", "q.lokr.first.weight", "q_lora_strange.weight"]
)
def test_adapters_under_unknown_names_are_not_taken_for_a_model(suffix: str) -> None:
    with pytest.raises(NotAnAdapterError) as caught:
        from_tensors(zeros(f"diffusion_model.blocks.0.self_attn.{suffix}"), name="x")
    assert "a diffusion model" not in str(caught.value)
    assert suffix in str(caught.value)


def test_a_control_lora_is_shown_its_loader() -> None:
    stored = zeros("lora_controlnet", "input_blocks.0.0.weight", "middle_block.1.proj_in.weight")
    with pytest.raises(NotAnAdapterError, match=r"ControlLoRA.*Load ControlNet Model"):
        from_tensors(stored, name="x")


def test_an_adapter_whose_every_layer_has_something_unknown_is_not_taken_for_a_model() -> None:
    stored = zeros(
        *(
            f"diffusion_model.blocks.0.attn.{name}"
            for name in ("lora_up.weight", "lora_down.weight", "mystery")
        )
    )
    with pytest.raises(NotAnAdapterError) as caught:
        from_tensors(stored, name="x")
    assert "a diffusion model" not in str(caught.value)
    assert "mystery" in str(caught.value)


def test_what_is_no_weights_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(FileFormatError, match=r"file 'page\.safetensors'.*web page"):
        load(tmp_path / "page.safetensors")
    with pytest.raises(FileFormatError, match=r"file 'gone\.safetensors'.*no such file"):
        load(tmp_path / "gone.safetensors")
