"""What is known of a model by its weights alone, and what a name with several meanings means."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoint_shapes import clip
from safetensors.torch import save_file

import lycoris_algos
from lycoris_algos.model_files import BaseFile, WeightsInMemory
from lycoris_algos.network import Part

TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def test_weights_in_memory_know_no_names() -> None:
    weight, bias = torch.randn(4, 3), torch.randn(4)
    known = WeightsInMemory({"a": weight}, {"a": bias})
    assert (known.shape("a", "weight"), known.shape("a", "bias"), known.shape("b", "weight")) == (
        (4, 3),
        (4,),
        None,
    )
    assert known.fetch("a", "weight") is weight
    assert known.fetch("a", "bias") is bias
    assert known.same_layer("a") is None
    assert known.spelled("a", "kohya") is None
    assert (known.is_text(TEXT), known.is_text("lora_unet_a")) == (True, False)
    assert known.record() == {}


def test_a_name_means_what_all_its_adapters_fit(tmp_path: Path) -> None:
    """One number, two CLIPs: the second file's adapter tells which of them the first one meant."""
    shapes = {
        **clip("conditioner.embedders.0.transformer.", 768, 1),
        **clip("conditioner.embedders.1.", 1280, 1),
    }
    save_file({key: torch.randn(shape) for key, shape in shapes.items()}, tmp_path / "base.safetensors")
    vague = lycoris_algos.from_tensors(
        {f"{TEXT}.lora_up.weight": torch.ones(1280, 1), f"{TEXT}.lora_down.weight": torch.ones(1, 1280)}
    )
    with BaseFile(tmp_path / "base.safetensors") as known:
        assert known.shape(TEXT, "weight") == (768, 768)
        assert known.spelled(TEXT, "kohya") == (Part(TEXT.replace("te_", "te1_")),)
    with BaseFile(tmp_path / "base.safetensors", [vague]) as known:
        assert known.shape(TEXT, "weight") == (1280, 1280)
        assert known.shape(TEXT, "bias") == (1280,)
        assert known.spelled(TEXT, "kohya") == (Part(TEXT.replace("te_", "te2_")),)
        stored = known.fetch(TEXT, "weight")
        assert stored.shape == (1280, 1280)
        assert known.record()["file"] == "base.safetensors"
