"""Files in PEFT's and diffusers' spelling, read by the real PEFT: the same change, whatever their ranks."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lycoris_algos
from lycoris_algos import AdapterSet, convert
from lycoris_algos.merge.combine import plan_combine, run_combine
from lycoris_algos.network import StackEntry, to_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of transformers and accelerate, while they are imported
    import peft

#: Names of which one ends with another, and ranks and alphas that differ.
LAYERS = {
    "proj_out": (3, 1.5),
    "blocks.0.proj_out": (2, 2.0),
    "blocks.0.to_q": (2, 8.0),
    "blocks.1.to_q": (5, 1.0),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj_out = nn.Linear(12, 16)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"to_q": nn.Linear(12, 16), "proj_out": nn.Linear(12, 16)}) for _ in range(2)
        )


def adapters(prefix: str, magnitudes: bool) -> AdapterSet:
    draw = torch.Generator().manual_seed(1)
    stored: dict[str, Tensor] = {}
    for name, (rank, alpha) in LAYERS.items():
        stored[f"{prefix}{name}.lora_B.weight"] = torch.randn((16, rank), generator=draw)
        stored[f"{prefix}{name}.lora_A.weight"] = torch.randn((rank, 12), generator=draw)
        stored[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
        if magnitudes:
            stored[f"{prefix}{name}.lora_magnitude_vector"] = torch.rand(16, generator=draw) + 1
    return lycoris_algos.from_tensors(stored)


def merged_by_peft(tensors: dict[str, Tensor], config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """(layer, its weight with the adapter merged in)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Model(), peft.LoraConfig(**config))
        result = peft.set_peft_model_state_dict(model, tensors)
        assert not result.unexpected_keys
        merged = model.merge_and_unload()
    for name in LAYERS:
        yield name, merged.get_submodule(name).weight.detach()


@pytest.mark.parametrize("magnitudes", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("combined", [False, True], ids=["converted", "combined"])
@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer."])
def test_peft_reads_what_is_written(prefix: str, combined: bool, magnitudes: bool) -> None:
    own = adapters(prefix, magnitudes)
    if combined:
        written = run_combine(plan_combine([StackEntry(own)])).adapters
    else:
        written = convert(own)
    tensors = to_tensors(written)
    assert all(re.search(r"lora_[AB]\.weight$|lora_magnitude_vector$", key) for key in tensors)
    said = json.loads(written.metadata["lora_adapter_metadata"])
    component = "" if prefix.startswith("base") else prefix
    config = {key.removeprefix(component): value for key, value in said.items()}
    inside = {f"base_model.model.{key.removeprefix(prefix)}": value for key, value in tensors.items()}
    plain = Model()
    for name, weight in merged_by_peft(inside, config):
        base = plain.get_submodule(name).weight.detach()
        wanted = own[prefix + name].delta(base)
        assert (weight - base - wanted).norm() <= 1e-5 * wanted.norm(), name
