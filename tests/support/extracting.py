"""Pairs of small models, a base and one that was changed in a known way, and extractions from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from checkpoint_shapes import Shapes
from safetensors.torch import load_file, save_file
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet
from lycoris_algos.extract import Extracted, ExtractOptions, plan_extract, run_extract
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import plan_bake, run_bake
from lycoris_algos.model_files import BaseFile
from lycoris_algos.network import StackEntry

Tensors = dict[str, Tensor]


def drawn(shapes: Shapes, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensors:
    """A checkpoint of ``shapes`` with random numbers of the size of weights."""
    generator = torch.Generator().manual_seed(seed)
    return {key: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for key, shape in shapes.items()}


def write(folder: Path, name: str, tensors: Tensors) -> Path:
    """``tensors`` as a file."""
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def changed(tensors: Tensors, changes: Mapping[str, Tensor]) -> Tensors:
    """``tensors`` with ``changes`` added to some of them."""
    return {key: value + changes[key] if key in changes else value.clone() for key, value in tensors.items()}


def extract(base: Path, tuned: Path, device: str = "cpu", **options: object) -> Extracted:
    """What ``tuned`` has more than ``base``."""
    with BaseFile(base) as first, BaseFile(tuned) as second:
        made = ExtractOptions(**options)  # type: ignore[arg-type]
        plan = plan_extract(first, second, made, (base.name, tuned.name))
        return run_extract(plan, device)


def baked(base: Path, adapters: AdapterSet, name: str = "again") -> Tensors:
    """The tensors of ``base`` with ``adapters`` baked in, in float32."""
    plan = plan_bake(read_header(base), [StackEntry(adapters)], torch.float32, base=base.name)
    plan.require(everything=True)
    return load_file(run_bake(plan, base, base.with_name(f"{name}.safetensors")).path)


def planted(base: Path, layers: Mapping[str, Mapping[str, Tensor]], name: str = "tuned") -> Path:
    """A tuned model: ``base`` with a file of {layer: {suffix: tensor}} baked in."""
    tensors = {f"{layer}.{suffix}": value for layer, own in layers.items() for suffix, value in own.items()}
    tuned = baked(base, lycoris_algos.from_tensors(tensors, name="planted"), f"{name}-baked")
    return write(base.parent, name, tuned)


def largest_error(base: Tensors, tuned: Tensors, again: Tensors) -> float:
    """‖again − tuned‖ as a share of ‖tuned − base‖, of the worst tensor that differs."""
    worst = 0.0
    for key, wanted in tuned.items():
        size = float((wanted.double() - base[key].double()).norm())
        missed = float((again[key].double() - wanted.double()).norm())
        worst = max(worst, missed / size if size else missed)
    return worst
