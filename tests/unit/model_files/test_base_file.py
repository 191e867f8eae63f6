"""Base weights out of a checkpoint file: which tensors a layer of an adapter file is held against."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lycoris_algos
from lycoris_algos.errors import NeedsBaseError
from lycoris_algos.merge.combine import (
    CombineOptions,
    plan_combine,
    run_combine,
)
from lycoris_algos.model_files import BaseFile
from lycoris_algos.network import StackEntry

UNET = "model.diffusion_model."
PIECES = ("to_q", "to_k", "to_v")


def save_base(folder: Path, tensors: dict[str, Tensor]) -> Path:
    rest = {f"{UNET}rest.{number}.weight": torch.zeros(2, 2) for number in range(6)}
    save_file({**rest, **tensors}, folder / "base.safetensors")
    return folder / "base.safetensors"


def lora(outputs: int, inputs: int) -> dict[str, Tensor]:
    return {"lora_up.weight": torch.randn(outputs, 4), "lora_down.weight": torch.randn(4, inputs)}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_layer_that_the_file_has_in_pieces_is_held_against_all_of_them(axis: int, tmp_path: Path) -> None:
    pieces = [torch.randn(16, 12) for _ in PIECES]
    base = save_base(tmp_path, {f"{UNET}a.{n}.weight": w for n, w in zip(PIECES, pieces, strict=True)})
    layer = "lora_unet_a_to_qkv"
    dora = {**lora(48, 12), "dora_scale": torch.rand((48, 1) if axis == 0 else (1, 12)) + 1}
    own = lycoris_algos.from_tensors({f"{layer}.{suffix}": value for suffix, value in dora.items()})
    with BaseFile(base, [own]) as weights:
        plan = plan_combine([StackEntry(own)], CombineOptions(output="full"), weights)
        result = run_combine(plan).adapters[layer]
    wanted = own[layer].delta(torch.cat(pieces).double())
    assert torch.allclose(result.delta((48, 12)).double(), wanted, atol=1e-5)


def test_names_are_known_where_weights_are_packed(tmp_path: Path) -> None:
    """NVFP4 has two numbers to a byte, and so another shape than the layer."""
    packed = {"weight": torch.zeros(16, 6).byte(), "weight_scale_2": torch.ones(())}
    base = save_base(tmp_path, {f"{UNET}a.to_q.{name}": value for name, value in packed.items()})
    layer = "lora_unet_a_to_q"
    sets = [
        lycoris_algos.from_tensors({f"{layer}.{suffix}": value for suffix, value in own.items()})
        for own in (lora(16, 12), {**lora(16, 12), "dora_scale": torch.rand(16, 1) + 1})
    ]
    with BaseFile(base, sets) as weights:
        (part,) = weights.spelled(layer, "comfy") or ()
        assert part.name == "diffusion_model.a.to_q"
        plan = plan_combine([StackEntry(sets[0])] * 2, CombineOptions(), weights)
        assert run_combine(plan).adapters[layer].delta((16, 12)).norm() > 0
        with pytest.raises(NeedsBaseError, match="quantised"):
            plan_combine([StackEntry(own) for own in sets], CombineOptions(), weights)


def test_the_base_tells_which_layers_are_of_a_text_encoder(tmp_path: Path) -> None:
    """LyCORIS' wrapper names the same kind of layer alike in both; one file has a language model beside."""
    of_text, of_model = "lycoris_layers_0_self_attn_q_proj", "lycoris_a_to_q"
    base = save_base(
        tmp_path,
        {
            f"{UNET}a.to_q.weight": torch.randn(16, 16),
            "text_encoders.qwen.transformer.model.layers.0.self_attn.q_proj.weight": torch.randn(16, 16),
        },
    )
    stored = {f"{n}.{suffix}": v for n in (of_text, of_model) for suffix, v in lora(16, 16).items()}
    own = lycoris_algos.from_tensors(stored)
    sources = [StackEntry(own, 1.0, 0.25)]
    with BaseFile(base, [own]) as weights:
        plan = plan_combine(sources, None, weights)
        known = run_combine(plan).adapters
    unknown = run_combine(plan_combine(sources)).adapters
    shape = (16, 16)
    delta = own[of_text].delta(shape)
    assert torch.allclose(known[of_text].delta(shape), 0.25 * delta)
    assert torch.allclose(known[of_model].delta(shape), own[of_model].delta(shape))
    assert torch.allclose(unknown[of_text].delta(shape), delta)
