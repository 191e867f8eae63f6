"""Spellings that few files have: each is read as what its program meant, or carried along and named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lycoris_algos import AdapterSet, convert, from_tensors, load, save
from lycoris_algos.inspection import describe
from lycoris_algos.merge.combine import CombineOptions, plan_combine, run_combine
from lycoris_algos.network import StackEntry, to_tensors
from lycoris_algos.ops.ranks import RankKind, RankRule


def pair(layer: str, rank: int = 2) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": torch.randn(rank, 6), f"{layer}.lora_B.weight": torch.randn(4, rank)}


def delta(own: AdapterSet, layer: str, shape: tuple[int, ...] = (4, 6)) -> Tensor:
    return own[layer].delta(torch.zeros(shape))


# ---- PEFT -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "default_1", "my_lora", "adapter_1", "style-2"])
@pytest.mark.parametrize("layer", ["blocks.0.q", "transformer.blocks.0.q", "base_model.model.blocks.0.q"])
def test_an_adapter_of_peft_may_have_any_name(name: str, layer: str) -> None:
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    own = from_tensors({f"{layer}.lora_A.{name}.weight": down, f"{layer}.lora_B.{name}.weight": up})
    torch.testing.assert_close(delta(own, layer), up @ down)


def test_two_adapters_of_peft_in_one_file_are_named() -> None:
    layer = "transformer.blocks.0.to_q"
    two = {key.replace(".weight", ".other.weight"): value for key, value in pair(layer).items()}
    own = from_tensors({**pair(layer), **two, **pair("transformer.blocks.1.to_q")})
    assert list(own) == ["transformer.blocks.1.to_q"]
    assert len(own.unmatched) == 4


@pytest.mark.parametrize(
    "wrapper", ["", ".modules_to_save", ".modules_to_save.default", ".modules_to_save.own"]
)
def test_a_layer_that_was_trained_whole_takes_the_place_of_the_models(wrapper: str) -> None:
    for prefix in ("base_model.model.", "transformer."):
        layer = f"{prefix}proj_out"
        whole, whole_bias = torch.randn(4, 6), torch.randn(4)
        parameters = {f"{layer}{wrapper}.weight": whole, f"{layer}{wrapper}.bias": whole_bias}
        own = from_tensors({**pair(f"{prefix}blocks.0.q"), **parameters})
        weight, bias, changed = torch.randn(4, 6), torch.randn(4), own[layer].bias
        assert changed is not None
        torch.testing.assert_close(weight + own[layer].delta(weight), whole)
        torch.testing.assert_close(bias + changed.delta(bias), whole_bias)
        assert own.unmatched == ()


@pytest.mark.parametrize("wrapper", ["", ".base_layer"])
@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer."])
def test_a_bias_that_was_trained_beside_an_adapter_takes_the_place_of_the_layers(
    prefix: str, wrapper: str
) -> None:
    """PEFT's option ``bias``; PEFT of today wraps the layer, that of before did not."""
    layer, whole, bias = f"{prefix}blocks.0.q", torch.randn(4), torch.randn(4)
    own = from_tensors({**pair(layer), f"{layer}{wrapper}.bias": whole})
    changed = own[layer].bias
    assert changed is not None
    torch.testing.assert_close(bias + changed.delta(bias), whole)
    assert own.unmatched == ()


def test_a_bias_of_unknown_meaning_leaves_its_layer_out() -> None:
    own = from_tensors({**pair("lora_unet_a"), **pair("lora_unet_b"), "lora_unet_a.bias": torch.ones(4)})
    assert list(own) == ["lora_unet_b"]
    assert len(own.unmatched) == 3


def test_whole_weights_under_names_of_no_trainer_stay_unread() -> None:
    own = from_tensors({**pair("transformer.blocks.0.to_q"), "image_proj.norm.weight": torch.ones(4)})
    assert [item.key for item in own.unmatched] == ["image_proj.norm.weight"]


@pytest.mark.parametrize(
    ("suffix", "times"), [("lora_B.bias", 4.0), ("lora_B.own.bias", 4.0), ("diff_b", 1.0)]
)
def test_a_bias_of_peft_is_scaled_as_its_weight(suffix: str, times: float) -> None:
    layer, bias = "transformer.blocks.0.to_q", torch.randn(4)
    own = from_tensors({**pair(layer, 4), f"{layer}.alpha": torch.tensor(16.0), f"{layer}.{suffix}": bias})
    adapter = own[layer].bias
    assert adapter is not None
    torch.testing.assert_close(adapter.delta((4,)), times * bias)


# ---- others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("diffusion_model.blocks.3.diff_m", "diffusion_model.blocks.3.modulation"),
        ("diffusion_model.head.diff_m", "diffusion_model.head.modulation"),
        ("lora_unet_blocks_3.diff_m", "lora_unet_blocks_3_modulation"),
    ],
)
def test_the_change_of_wans_modulation(key: str, layer: str) -> None:
    change = torch.randn(1, 6, 8)
    own = from_tensors({key: change})
    torch.testing.assert_close(own[layer].delta((1, 6, 8)), change)


def test_factors_without_weight_in_their_names() -> None:
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    own = from_tensors({"lora_unet_a.lora_down": down, "lora_unet_a.lora_up": up})
    torch.testing.assert_close(delta(own, "lora_unet_a"), up @ down)


# ---- what nobody reads ------------------------------------------------------------------------------------


def test_what_nobody_reads_is_written_again_as_it_was(tmp_path: Path) -> None:
    strange = {"strange.thing": torch.randn(3), "transformer.blocks.1.to_q.lora_A.mystery.x": torch.ones(2)}
    first = from_tensors({**pair("transformer.blocks.0.to_q"), **strange})
    again = load(save(first, tmp_path / "a.safetensors"))
    assert [item.key for item in again.unmatched] == [item.key for item in first.unmatched]
    for key, value in strange.items():
        assert torch.equal(again.unread[key], value)
    assert "strange.thing" in describe(again)
    assert again.size_bytes == first.size_bytes


def test_new_names_give_no_meaning_to_what_nobody_read(tmp_path: Path) -> None:
    stray = "lora_unet_down_blocks_0_norm.weight"
    own = from_tensors({**pair("unet.down_blocks.0.attn.to_q"), stray: torch.ones(6), "x.y": torch.ones(1)})
    assert own.unread.keys() == {stray, "x.y"}
    spelled = convert(own, dialect="kohya")
    again = load(save(spelled, tmp_path / "x.safetensors"))
    assert list(again) == list(spelled)
    assert again.unread.keys() == {"x.y"}
    assert any("left out" in note and stray in note for note in spelled.notes)


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_a_file_for_diffusers_holds_nothing_that_diffusers_refuses(dialect: str) -> None:
    strange = {"strange.thing": torch.randn(3), "bundle_emb.word.clip_l": torch.randn(2, 768)}
    first = from_tensors({**pair("transformer.blocks.0.to_q"), **strange})

    written = convert(first, dialect=dialect)

    assert all("lora" in key for key in to_tensors(written))  # diffusers' own test of a file
    (note,) = written.notes
    assert all(key in note for key in strange)
    assert set(strange) < to_tensors(convert(first)).keys(), "as stored it is carried along"


def test_a_lora_of_hcp_keeps_its_change_when_it_gets_an_alpha(tmp_path: Path) -> None:
    """HCP calls alpha what others call alpha/rank; what is combined has an alpha like all others."""
    layer = "lora:mid_block.attentions.0.proj_in"
    down, up = torch.randn(4, 6), torch.randn(4, 4)
    stored = {f"{layer}.___.layer.W_down": down, f"{layer}.___.layer.W_up": up}
    own = from_tensors({**stored, f"{layer}.___.alpha": torch.tensor(0.5)})
    options = CombineOptions(rank=RankRule(RankKind.FIXED, 4))
    combined = run_combine(plan_combine([StackEntry(own), StackEntry(own)], options)).adapters
    back = load(save(combined, tmp_path / "x.safetensors"))
    torch.testing.assert_close(delta(back, layer, (4, 6)), up @ down)


def test_what_stands_beside_a_whole_weight_does_not_spoil_the_file_that_is_saved(tmp_path: Path) -> None:
    prefix = "base_model.model."
    whole = {f"{prefix}norm.weight": torch.ones(6), f"{prefix}norm.num_batches_tracked": torch.tensor(3)}
    own = from_tensors({**pair(f"{prefix}blocks.0.q"), **whole})
    assert [item.key for item in own.unmatched] == [f"{prefix}norm.num_batches_tracked"]
    again = load(save(own, tmp_path / "x.safetensors"))
    assert list(again) == list(own)


def test_a_layer_that_was_not_used_is_carried_along_whole(tmp_path: Path) -> None:
    strange = {
        "lora_unet_x.lora_up.weight": torch.ones(4, 2),
        "lora_unet_x.lora_dwn.weight": torch.ones(2, 6),
    }
    own = from_tensors({**pair("unet.down_blocks.0.attn.to_q"), **strange})
    for dialect in ("kohya", None):
        again = load(save(own, tmp_path / "x.safetensors", dialect=dialect))
        assert again.unread.keys() == strange.keys()
