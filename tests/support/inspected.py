"""A stack of three files for one small model, for tests of what is made of an inspection."""

from __future__ import annotations

import torch
from torch import Tensor

from lycoris_algos import from_tensors
from lycoris_algos.inspection import Inspection, View, inspect
from lycoris_algos.model_files import WeightsInMemory
from lycoris_algos.network import StackEntry

LAYERS = tuple(
    f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_attn{attention}_to_{part}"
    for block in range(3)
    for attention in (1, 2)
    for part in "qkv"
)
#: A layer that stands out.
LOUD = LAYERS[7]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def entry(name: str, seed: int, strength: float = 1.0) -> StackEntry:
    """A LoRA on every layer, strong on one."""
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(LAYERS):
        loud = 8.0 if layer == LOUD else 1.0
        tensors[f"{layer}.lora_up.weight"] = loud * draw(24, 4, seed=seed + number)
        tensors[f"{layer}.lora_down.weight"] = draw(4, 16, seed=seed + number) / 50
    return StackEntry(from_tensors(tensors, {"modelspec.title": "A title"}, name=name), strength, strength)


def model() -> WeightsInMemory:
    weights = {layer: draw(24, 16, seed=number).half() for number, layer in enumerate(LAYERS)}
    return WeightsInMemory(weights, {})


def found(view: View, *names: str) -> Inspection:
    """A view of files of these names."""
    stack = [entry(name, 100 * number, 1.0 - number / 2) for number, name in enumerate(names)]
    return inspect(stack, view, model())
