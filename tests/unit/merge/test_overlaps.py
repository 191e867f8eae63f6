"""One weight that layers of one file reach twice: made once, or said which is used; by every job alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from baking import UNET, bake, entry, lora, save_base
from safetensors.torch import load_file
from torch import Tensor

import lycoris_algos
from lycoris_algos.merge.bake import bake_report
from lycoris_algos.merge.combine import plan_combine, run_combine
from lycoris_algos.model_files import BaseFile
from lycoris_algos.network import StackEntry

BLOCK = f"{UNET}joint_blocks.0.x_block.attn."
QKV, PROJ = f"{BLOCK}qkv.weight", f"{BLOCK}proj.weight"
FUSED, OUT = "lora_unet_joint_blocks_0_x_block_attn_qkv", "lora_unet_joint_blocks_0_x_block_attn_proj"
SPLIT, SPLIT_OUT = (
    "transformer.transformer_blocks.0.attn.to_",
    "transformer.transformer_blocks.0.attn.to_out.0",
)

Tensors = dict[str, Tensor]
Layers = dict[str, Tensors]


def base_file(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(2)
    tensors = {f"{UNET}rest.{number}.weight": torch.zeros(2, 2) for number in range(6)}
    tensors[QKV] = torch.randn(48, 16, generator=generator)
    tensors[PROJ] = torch.randn(16, 16, generator=generator)
    return save_base(folder, tensors)


def change(own: Tensors, shape: tuple[int, ...]) -> Tensor:
    return lycoris_algos.LayerAdapter.from_tensors(own).delta(shape)


def parts() -> tuple[Layers, Tensors]:
    """LoRAs of q, k and v, and the LoRA of the fused weight that is the same."""
    split = {f"{SPLIT}{name}": lora(2, (16, 16), seed) for seed, name in enumerate("qkv")}
    ups, downs = zip(*((p["lora_up.weight"], p["lora_down.weight"]) for p in split.values()), strict=True)
    fused = {"lora_up.weight": torch.block_diag(*ups), "lora_down.weight": torch.cat(downs)}
    return split, {**fused, "alpha": torch.tensor(6.0)}


def merged(folder: Path, layers: Layers, key: str) -> tuple[Tensor, str]:
    """(the change that Merge makes of ``key``, its report)."""
    base = base_file(folder)
    result = bake(base, entry(layers))
    return load_file(result.path)[key] - load_file(base)[key], bake_report(result)


def combined(folder: Path, layers: Layers, key: str) -> tuple[Tensor, str]:
    """The same of a file that Combine made with the base."""
    base = base_file(folder)
    own = entry(layers)
    with BaseFile(base, [own.adapters]) as known:
        made = run_combine(plan_combine([own], base=known))
    result = bake(base, StackEntry(made.adapters))
    return load_file(result.path)[key] - load_file(base)[key], made.report()


JOBS = pytest.mark.parametrize("job", [merged, combined])


@JOBS
@pytest.mark.parametrize("order", [1, -1])
def test_one_layer_under_two_names_is_made_once(job: type[merged], order: int, tmp_path: Path) -> None:
    own = lora(shape=(16, 16))
    found, report = job(tmp_path, dict([(OUT, own), (SPLIT_OUT, own)][::order]), PROJ)
    torch.testing.assert_close(found, change(own, (16, 16)))
    assert "made once" in report
    assert (SPLIT_OUT if order == 1 else OUT).replace("0", "*")[:30] in report.replace("0", "*")


@JOBS
def test_a_fused_layer_beside_the_same_parts_is_made_once(job: type[merged], tmp_path: Path) -> None:
    split, fused = parts()
    found, report = job(tmp_path, {**split, FUSED: fused}, QKV)
    torch.testing.assert_close(found, change(fused, (48, 16)))
    assert "made once" in report


@JOBS
def test_one_part_of_a_fused_layer_again_is_made_once(job: type[merged], tmp_path: Path) -> None:
    split, fused = parts()
    found, report = job(tmp_path, {f"{SPLIT}k": split[f"{SPLIT}k"], FUSED: fused}, QKV)
    torch.testing.assert_close(found, change(fused, (48, 16)))
    assert "made once" in report


@JOBS
def test_of_different_changes_the_larger_part_is_used_and_said(job: type[merged], tmp_path: Path) -> None:
    fused, part = lora(shape=(48, 16)), lora(shape=(16, 16), seed=9)
    found, report = job(tmp_path, {f"{SPLIT}q": part, FUSED: fused}, QKV)
    torch.testing.assert_close(found, change(fused, (48, 16)))
    assert "another change" in report
    assert "changes more of it" in report


@JOBS
@pytest.mark.parametrize("algo", ["lora", "lokr", "oft"])
@pytest.mark.parametrize("dora", [False, True])
def test_leftovers_that_were_never_trained_are_dropped(
    job: type[merged], algo: str, dora: bool, tmp_path: Path
) -> None:
    zero: dict[str, Tensors] = {
        "lora": {"lora_up.weight": torch.zeros(16, 2), "lora_down.weight": torch.randn(2, 16)},
        "lokr": {"lokr_w1": torch.randn(4, 4), "lokr_w2": torch.zeros(4, 4), "alpha": torch.tensor(1.0)},
        "oft": {"oft_blocks": torch.zeros(4, 4, 4), "alpha": torch.tensor(1.0)},
    }
    weight = load_file(base_file(tmp_path))[QKV]
    layers: Layers = {}
    for number, name in enumerate("qkv"):
        layers[f"{SPLIT}{name}"] = dict(zero[algo])
        if dora and algo != "oft":
            rows = weight[16 * number : 16 * number + 16]
            layers[f"{SPLIT}{name}"]["dora_scale"] = rows.norm(dim=1, keepdim=True)
    fused = lora(shape=(48, 16))
    found, report = job(tmp_path, {**layers, FUSED: fused}, QKV)
    torch.testing.assert_close(found, change(fused, (48, 16)))
    assert "never trained" in report


def test_a_file_that_was_combined_means_the_sum(tmp_path: Path) -> None:
    fused, part = lora(shape=(48, 16)), lora(shape=(16, 16), seed=9)
    made = run_combine(plan_combine([entry({FUSED: fused}), entry({f"{SPLIT}k": part})])).adapters
    base = base_file(tmp_path)
    result = bake(base, StackEntry(made))
    expected = change(fused, (48, 16))
    expected[16:32] += change(part, (16, 16))
    torch.testing.assert_close(load_file(result.path)[QKV] - load_file(base)[QKV], expected)
    assert "both are used" in bake_report(result)


def test_layers_that_do_not_meet_are_not_spoken_of(tmp_path: Path) -> None:
    split, fused = parts()
    found, report = merged(tmp_path, {**split, OUT: lora(shape=(16, 16))}, QKV)
    torch.testing.assert_close(found, change(fused, (48, 16)))
    assert "the same weight" not in report
    assert "4 of 4 layers" in report


def test_very_many_names_of_one_weight_are_settled_at_once(tmp_path: Path) -> None:
    own = lora(1, (16, 16))
    prefixes = (
        "lora_unet_",
        "lora_unet__",
        "oft_unet_",
        "diffusion_model.",
        "transformer.",
        "unet.",
        "prior.",
    )
    names = [f"{one}{two}joint_blocks_0_x_block_attn_proj" for one in prefixes for two in ("", *prefixes)]
    found, report = merged(tmp_path, dict.fromkeys(names, own), PROJ)
    torch.testing.assert_close(found, change(own, (16, 16)))
    assert "made once" in report
