"""Files that are only understood as a whole."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from lycoris_algos import from_tensors, load
from lycoris_algos.network.layouts import plain


def control(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A small file as BFL's Flux control adapters are."""
    return {
        "img_in.lora_A.weight": torch.ones(2, 8),
        "img_in.lora_B.weight": torch.ones(6, 2),
        "img_in.lora_B.bias": torch.ones(6),
        "double_blocks.0.img_attn.norm.query_norm.scale": torch.full((3,), 0.5),
        "single_blocks.0.norm.key_norm.scale": torch.full((3,), 0.25),
        **more,
    }


def test_a_control_adapter() -> None:
    adapters = from_tensors(control())
    assert adapters.unmatched == ()
    assert adapters.keys() == {
        "img_in",
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "single_blocks.0.norm.key_norm.scale",
    }
    norm = torch.tensor([1.0, 2.0, 3.0])
    adapters["single_blocks.0.norm.key_norm.scale"].add_to_(norm, 1.0)
    assert torch.equal(norm, torch.full((3,), 0.25))
    # The model's img_in has 4 inputs; the adapter makes it 8.
    grown = adapters["img_in"].add_to_(torch.zeros(6, 4), 1.0)
    assert torch.equal(grown, torch.full((6, 8), 2.0))
    bias = torch.zeros(6)
    assert adapters["img_in"].bias is not None
    assert torch.equal(adapters["img_in"].bias.add_to_(bias, 1.0), torch.ones(6))


def test_other_files_stay_as_they_are() -> None:
    for missing in ("img_in.lora_A.weight", "img_in.lora_B.weight"):
        tensors = control()
        del tensors[missing]
        assert plain(tensors) is tensors
    tensors = {key: value for key, value in control().items() if not key.endswith("scale")}
    assert plain(tensors) is tensors


# ---- HCP-Diffusion: tables of tables, and an alpha that is a scale ------------------------------------

PATH = "mid_block.attentions.0.proj_in"


def hcp(separator: str) -> dict[str, torch.Tensor]:
    return {
        f"lora{separator}{PATH}.___.layer.W_down": torch.ones(4, 3),
        f"lora{separator}{PATH}.___.layer.W_up": torch.ones(6, 4),
        f"lora{separator}{PATH}.___.alpha": torch.tensor(0.25),
    }


def test_hcp_multiplies_by_what_it_stores_as_alpha(tmp_path: Path) -> None:
    own = {key.removeprefix("lora."): value for key, value in hcp(".").items()}
    torch.save({"lora": own}, tmp_path / "unet-1.ckpt")
    save_file(hcp(":"), tmp_path / "unet-1.safetensors")
    for file, separator in (("unet-1.ckpt", "."), ("unet-1.safetensors", ":")):
        adapters = load(tmp_path / file)
        assert list(adapters) == [f"lora{separator}{PATH}"]
        assert adapters.dialect == "hcp"
        assert adapters.unmatched == ()
        # 4 ranks of ones, times 0.25: not times 0.25 / 4.
        assert torch.equal(adapters[f"lora{separator}{PATH}"].delta((6, 3)), torch.ones(6, 3))


def test_lycoris_in_hcp_is_what_it_is_elsewhere() -> None:
    stored = {
        f"plugin.{PATH}.___.lora_down.weight": torch.ones(4, 3),
        f"plugin.{PATH}.___.lora_up.weight": torch.ones(6, 4),
        f"plugin.{PATH}.___.alpha": torch.tensor(2.0),
    }
    adapters = from_tensors(stored)
    assert torch.equal(adapters[f"plugin.{PATH}"].delta((6, 3)), torch.full((6, 3), 2.0))
