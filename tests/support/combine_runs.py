"""Adapters of one layer or a few, and the runs that combine them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from combining import one_per_algorithm
from oracles import to_numpy
from samples import Case
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet, LayerAdapter
from lycoris_algos.merge.combine import (
    Combined,
    CombineOptions,
    plan_combine,
    run_combine,
)
from lycoris_algos.model_files import WeightsInMemory
from lycoris_algos.network import StackEntry

LAYER = "lora_unet_block_0_to_q"
SAMPLES = one_per_algorithm()
every_sample = pytest.mark.parametrize("case", SAMPLES, ids=lambda case: case.name)


def adapters(tensors: dict[str, Tensor], name: str = "a", layer: str = LAYER, **metadata: str) -> AdapterSet:
    """A set of one layer."""
    stored = {f"{layer}.{suffix}": value for suffix, value in tensors.items()}
    return lycoris_algos.from_tensors(stored, metadata, name=name)


def base_of(case: Case, layer: str = LAYER) -> WeightsInMemory:
    weights = {target.what: target.weight() for target in case.targets()}
    named = [{layer: weights[what]} if what in weights else {} for what in ("weight", "bias")]
    return WeightsInMemory(*named)


def delta_of(layer: LayerAdapter | None, weight: Tensor) -> np.ndarray:
    """ΔW in float64 as a matrix; nothing for no layer."""
    found = torch.zeros_like(weight) if layer is None else layer.delta(weight.double())
    return to_numpy(found).reshape(weight.shape[0], -1)


def combine(
    sources: list[StackEntry], base: WeightsInMemory | None = None, device: str = "cpu", **options: object
) -> Combined:
    return run_combine(plan_combine(sources, CombineOptions(**options), base), device)  # type: ignore[arg-type]


def linear(rank: int, seed: int, shape: tuple[int, int] = (64, 48), layers: int = 3) -> AdapterSet:
    """A LoRA of some Linear layers."""
    draw = torch.Generator().manual_seed(seed)
    stored = {}
    for index in range(layers):
        stored[f"lora_unet_block_{index}_to_q.lora_up.weight"] = torch.randn((shape[0], rank), generator=draw)
        stored[f"lora_unet_block_{index}_to_q.lora_down.weight"] = torch.randn(
            (rank, shape[1]), generator=draw
        )
        stored[f"lora_unet_block_{index}_to_q.alpha"] = torch.tensor(2.0)
    return lycoris_algos.from_tensors(stored, name=f"lora{seed}")


def lokr(seed: int, w1: Tensor | None = None, w2: Tensor | None = None) -> AdapterSet:
    draw = torch.Generator().manual_seed(seed)
    first = torch.randn((4, 4), generator=draw) if w1 is None else w1
    second = torch.randn((16, 12), generator=draw) if w2 is None else w2
    return adapters({"lokr_w1": first, "lokr_w2": second}, f"lokr{seed}")
