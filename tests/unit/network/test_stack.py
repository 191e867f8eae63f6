"""One stack for everything: what multiplier a layer gets, and that every job gives it the same one."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lycoris_algos
from lycoris_algos.io import read_header
from lycoris_algos.merge import plan_bake, plan_combine, run_bake, run_combine
from lycoris_algos.network import StackEntry

MODEL, TEXT = "lora_unet_blocks_0_linear", "lora_te_text_model_encoder_layers_0_mlp_fc1"
KEYS = {
    MODEL: "model.diffusion_model.blocks.0.linear.weight",
    TEXT: "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
}


def entry(strength_model: float = 1.0, strength_clip: float = 1.0) -> StackEntry:
    """A file that adds one to every number of a layer of each kind."""
    tensors = {f"{layer}.diff": torch.ones(8, 8) for layer in KEYS}
    return StackEntry(lycoris_algos.from_tensors(tensors), strength_model, strength_clip)


def strength(entry: StackEntry, is_text: bool) -> float:
    return entry.multiplier("a", is_text, lambda _: None)


def test_an_entry_is_as_trained_by_default() -> None:
    plain = StackEntry(entry().adapters)
    assert (strength(plain, False), strength(plain, True)) == (1.0, 1.0)


def test_the_strength_of_a_whole_stack_is_a_factor_on_each_side() -> None:
    one = entry(0.5, -2.0)
    both = one.scaled(3.0, 0.25)
    assert (strength(both, False), strength(both, True)) == (1.5, -0.5)
    assert (strength(one, False), strength(one, True)) == (0.5, -2.0), "it stays as it was"
    assert both.adapters is one.adapters
    assert str(both) == "adapter at 1.5 (clip -0.5)"


def test_an_entry_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        entry().strength_model = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(("model", "clip"), [(0.5, -2.0), (0.0, 1.0), (1.0, 0.0)])
def test_merge_combine_and_convert_take_the_same_multipliers(
    model: float, clip: float, tmp_path: Path
) -> None:
    own = entry(model, clip)
    tensors = {key: torch.zeros(8, 8) for key in KEYS.values()}
    tensors |= {f"model.diffusion_model.rest.{number}.weight": torch.zeros(2, 2) for number in range(6)}
    tensors["cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"] = torch.zeros(
        768, 768
    )
    save_file(tensors, tmp_path / "base.safetensors")
    wanted = {MODEL: model, TEXT: clip}

    plan = plan_bake(read_header(tmp_path / "base.safetensors"), [own])
    baked = load_file(run_bake(plan, tmp_path / "base.safetensors", tmp_path / "out.safetensors").path)
    assert {layer: float(baked[key].mean()) for layer, key in KEYS.items()} == wanted

    kept = {layer: multiplier for layer, multiplier in wanted.items() if multiplier}
    combined = run_combine(plan_combine([own])).adapters
    converted = lycoris_algos.convert(own.adapters, strength_model=model, strength_clip=clip)
    for result in (combined, converted):
        assert {layer: float(result[layer].delta((8, 8)).mean()) for layer in result} == kept
