"""Files that were made for another model: said where some of it fits by chance, and where nothing does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from checkpoint_shapes import Shapes, flux, sd15
from safetensors.torch import save_file

import lycoris_algos
from lycoris_algos import AdapterSet, NoMatchError
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import plan_bake, plan_report
from lycoris_algos.model_files import advice, doubts, index_checkpoint
from lycoris_algos.network import StackEntry

SIZE = 12
ATTENTION = ("attn.to_q", "attn.to_out.0", "attn.add_k_proj", "attn.to_add_out")
FLUX = tuple(f"lora_unet_double_blocks_{number}_img_attn_proj" for number in range(2))


def adapters(layers: Iterable[str], size: int = SIZE) -> AdapterSet:
    tensors = {}
    for layer in layers:
        tensors[f"{layer}.lora_up.weight"] = torch.ones(size, 1)
        tensors[f"{layer}.lora_down.weight"] = torch.ones(1, size)
    return lycoris_algos.from_tensors(tensors, name="mine")


def qwen(*parts: str, blocks: int = 6) -> AdapterSet:
    """An adapter of Qwen-Image, whose attention has Flux's names and sizes."""
    return adapters(
        f"transformer.transformer_blocks.{number}.{part}" for number in range(blocks) for part in parts
    )


def planned(own: AdapterSet, shapes: Shapes, folder: Path) -> str:
    path = folder / "base.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    plan = plan_bake(read_header(path), [StackEntry(own)])
    plan.require()
    return plan_report(plan)


def test_layers_that_fit_by_their_sizes_alone_are_doubted(tmp_path: Path) -> None:
    own = qwen(*ATTENTION)
    (doubt,) = doubts(own, index_checkpoint(flux()), 2 * len(ATTENTION), len(own))
    assert "most of its layers do not fit" in doubt
    assert doubt in planned(own, flux(), tmp_path)


def test_a_family_that_names_tell_is_named() -> None:
    own = qwen(*ATTENTION, "img_mod.1")
    (doubt,) = doubts(own, index_checkpoint(flux()), len(own) - 6, len(own))
    assert "named as for Qwen-Image, and the model is Flux" in doubt


@pytest.mark.parametrize("missing", [0, 1])
def test_a_file_for_the_model_is_not_doubted(missing: int, tmp_path: Path) -> None:
    own = adapters((*FLUX, "lora_unet_double_blocks_0_txt_attn_proj"))
    assert doubts(own, index_checkpoint(flux()), len(own) - missing, len(own)) == []
    assert "harm" not in planned(own, flux(), tmp_path)


def test_another_size_of_the_same_family_is_not_sent_to_that_family(tmp_path: Path) -> None:
    own = adapters(FLUX, 2 * SIZE)
    said = advice(own, index_checkpoint(flux()))
    assert "trained for Flux, as this model is" in said
    assert "use it with that," not in said
    with pytest.raises(NoMatchError, match="as this model is, but for one of other sizes"):
        planned(own, flux(), tmp_path)


def test_another_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoMatchError, match="It was trained for Flux: use it with that, or remove it"):
        planned(adapters(FLUX), sd15(), tmp_path)
