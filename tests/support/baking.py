"""Small checkpoints, adapters for them, and what baking should make of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import lycoris_algos
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import plan_bake, run_bake
from lycoris_algos.network import StackEntry

UNET = "model.diffusion_model."
FP8 = torch.float8_e4m3fn

Tensors = dict[str, Tensor]


def base_tensors(dtype: torch.dtype = torch.float16) -> Tensors:
    """A small checkpoint of no family: six linear layers with biases, a norm, a VAE, a counter."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.1).to(dtype)

    tensors: Tensors = {}
    for number in range(6):
        tensors[f"{UNET}blocks.{number}.linear.weight"] = draw(24, 16)
        tensors[f"{UNET}blocks.{number}.linear.bias"] = draw(24)
    tensors[f"{UNET}norm.weight"] = draw(16)
    tensors["first_stage_model.conv.weight"] = draw(8, 4, 3, 3)
    tensors["steps"] = torch.tensor(7)
    tensors["betas"] = torch.linspace(0, 1, 10, dtype=torch.float64)
    return tensors


def save_base(folder: Path, tensors: Tensors | None = None, metadata: dict[str, str] | None = None) -> Path:
    """``base_tensors``, or others, as a file."""
    path = folder / "base.safetensors"
    save_file(base_tensors() if tensors is None else tensors, path, metadata)
    return path


def lora(rank: int = 4, shape: tuple[int, int] = (24, 16), seed: int = 0) -> Tensors:
    """A LoRA, by default for a layer of ``base_tensors``."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "lora_up.weight": torch.randn(shape[0], rank, generator=generator) * 0.1,
        "lora_down.weight": torch.randn(rank, shape[1], generator=generator) * 0.3,
        "alpha": torch.tensor(2.0),
    }


def every_block(seed: int = 0) -> dict[str, Tensors]:
    """A LoRA for each linear layer of ``base_tensors``."""
    return {f"lora_unet_blocks_{number}_linear": lora(seed=seed + number) for number in range(6)}


def entry(
    layers: dict[str, Tensors], multiplier: float = 1.0, clip: float = 1.0, name: str = "a.safetensors"
) -> StackEntry:
    """A file of {layer: {suffix: tensor}} in a stack."""
    tensors = {f"{layer}.{suffix}": value for layer, own in layers.items() for suffix, value in own.items()}
    return StackEntry(lycoris_algos.from_tensors(tensors, name=name), multiplier, clip)


def bake(base: Path, *stack: StackEntry, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """The result of baking ``stack`` into a file beside ``base``."""
    plan = plan_bake(read_header(base), stack, dtype, base=base.name)
    return run_bake(plan, base, base.with_name("out.safetensors"), **options)


def live(weight: Tensor, *steps: tuple[Tensors, float]) -> Tensor:
    """What live application makes of the weight, in float32."""
    changed = weight.float()
    layers = [(lycoris_algos.LayerAdapter.from_tensors(tensors), multiplier) for tensors, multiplier in steps]
    return lycoris_algos.apply_(changed, layers)


def names(folder: Path) -> list[str]:
    """The files in ``folder``."""
    return sorted(path.name for path in folder.iterdir())


def raw(path: Path) -> dict[str, bytes]:
    """{key: the bytes of the tensor} of a file."""
    data = path.read_bytes()
    return {key: data[info.start : info.end] for key, info in read_header(path).tensors.items()}
