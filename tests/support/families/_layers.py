"""Layers, files and models, and how the names of tensors are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
Rows = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A layer of a model under another program's path, and the parameter of ComfyUI's model that it is."""

    path: str
    #: Without ``.weight``.
    native: str
    rows: Rows | None = None
    swapped: bool = False


@dataclass(frozen=True)
class File:
    """A file that a trainer writes: how it calls layers and tensors."""

    trainer: str
    #: {layer name of the file: layer}
    layers: dict[str, Layer]
    #: Key of a tensor from (layer name, which of "down", "up", "alpha").
    spell: Callable[[str, str], str]


@dataclass(frozen=True)
class Subject:
    """A model (or its text encoders), and the files for it."""

    title: str
    load: Callable[[], Any]
    files: Callable[[Shapes], Iterable[File]]
    #: What stands before the model's paths in its parameters' keys.
    prefix: str = "diffusion_model."
    text: bool = field(default=False)
    #: Whether the host has it.
    has: Callable[[], bool] = lambda: True


KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight"}
RAW_PEFT = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
OLD_DIFFUSERS = {"down": "lora.down.weight", "up": "lora.up.weight"}
HCP = {"down": "___.layer.W_down", "up": "___.layer.W_up", "alpha": "___.alpha"}


def dotted(suffixes: Mapping[str, str]) -> Callable[[str, str], str]:
    return lambda layer, which: f"{layer}.{suffixes[which]}" if which in suffixes else ""


def glued(layer: str, which: str) -> str:
    return f"{layer}_lora.{which}.weight" if which != "alpha" else ""


def tensors_of(file: File, shapes: Shapes, prefix: str) -> dict[str, Tensor]:
    """The file's tensors: a LoRA of rank 1 for every layer, of the size that the layer has."""
    stored: dict[str, Tensor] = {}
    for name, layer in file.layers.items():
        outputs, *inputs = shapes[key_of(layer, shapes)]
        if layer.rows is not None:
            outputs = layer.rows[1]
        ones = (1,) * (len(inputs) - 1)
        stored[file.spell(name, "down")] = torch.ones(1, *inputs)
        stored[file.spell(name, "up")] = torch.ones(outputs, 1, *ones)
        if file.spell(name, "alpha"):
            stored[file.spell(name, "alpha")] = torch.tensor(1.0)
    return stored


def key_of(layer: Layer, shapes: Shapes) -> str:
    """The parameter of ``layer``, without the model's prefix."""
    weight = f"{layer.native}.weight"
    return weight if weight in shapes else layer.native


def named(layers: Iterable[Layer], prefix: str, *, flat: bool) -> dict[str, Layer]:
    return {prefix + (layer.path.replace(".", "_") if flat else layer.path): layer for layer in layers}


def file(
    trainer: str,
    layers: Iterable[Layer],
    prefix: str,
    suffixes: Mapping[str, str] = KOHYA,
    *,
    flat: bool = False,
) -> File:
    return File(trainer, named(layers, prefix, flat=flat), dotted(suffixes))


def native(shapes: Shapes) -> list[Layer]:
    """Every linear layer and convolution under the model's own name."""
    paths = [key.removesuffix(".weight") for key, shape in shapes.items() if key.endswith(".weight")]
    return [Layer(path, path) for path in paths if len(shapes[f"{path}.weight"]) > 1]


def count(shapes: Shapes, stack: str) -> int:
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{stack}.")})


def split(shapes: Shapes, fused: str, names: Iterable[str]) -> Iterator[Layer]:
    """Equal parts of a fused layer."""
    names = list(names)
    size = shapes[f"{fused}.weight"][0] // len(names)
    for number, name in enumerate(names):
        yield Layer(name, fused, (number * size, size))


def same(other: str, own: str, pairs: Mapping[str, str], shapes: Shapes) -> Iterator[Layer]:
    for name, path in pairs.items():
        if f"{own}{path}.weight" in shapes:
            yield Layer(other + name, own + path)
