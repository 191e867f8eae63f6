"""Files in PEFT's and diffusers' spelling, read by the real PEFT: the same change, whatever their ranks."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lycoris_algos
from lycoris_algos import AdapterSet, convert
from lycoris_algos.io import read_tensors
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


def adapters(prefix: str, magnitudes: bool = False, biases: bool = False) -> AdapterSet:
    draw = torch.Generator().manual_seed(1)
    stored: dict[str, Tensor] = {}
    for name, (rank, alpha) in LAYERS.items():
        stored[f"{prefix}{name}.lora_B.weight"] = torch.randn((16, rank), generator=draw)
        stored[f"{prefix}{name}.lora_A.weight"] = torch.randn((rank, 12), generator=draw)
        stored[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
        if magnitudes:
            stored[f"{prefix}{name}.lora_magnitude_vector"] = torch.rand(16, generator=draw) + 1
        if biases:
            stored[f"{prefix}{name}.diff_b"] = torch.randn(16, generator=draw)
    return lycoris_algos.from_tensors(stored)


def merged_by_peft(tensors: dict[str, Tensor], config: dict[str, Any]) -> Iterator[tuple[str, nn.Linear]]:
    """(name, layer with the adapter merged in)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Model(), peft.LoraConfig(**config))
        result = peft.set_peft_model_state_dict(model, tensors)
        assert not result.unexpected_keys
        merged = model.merge_and_unload()
    for name in LAYERS:
        layer = merged.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        yield name, layer


def written_in(way: str, own: AdapterSet, folder: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors, PEFT's configuration) of a file that was written in one of the ways there are."""
    if way == "saved":
        tensors, metadata = read_tensors(lycoris_algos.save(own, folder / "x.safetensors"))
        return tensors, metadata["lora_adapter_metadata"]
    if way == "combined":
        written = run_combine(plan_combine([StackEntry(own)])).adapters
    else:
        written = convert(own)
    return to_tensors(written), written.metadata["lora_adapter_metadata"]


@pytest.mark.parametrize("beside", ["nothing", "magnitudes", "biases"])
@pytest.mark.parametrize("way", ["saved", "converted", "combined"])
@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer."])
def test_peft_reads_what_is_written(prefix: str, way: str, beside: str, tmp_path: Path) -> None:
    own = adapters(prefix, magnitudes=beside == "magnitudes", biases=beside == "biases")
    tensors, said = written_in(way, own, tmp_path)
    known = r"lora_[AB]\.weight$|lora_magnitude_vector$|lora_B\.bias$"
    assert all(re.search(known, key) for key in tensors)
    component = "" if prefix.startswith("base") else prefix
    config = {key.removeprefix(component): value for key, value in json.loads(said).items()}
    inside = {f"base_model.model.{key.removeprefix(prefix)}": value for key, value in tensors.items()}
    plain = Model()
    for name, changed in merged_by_peft(inside, config):
        base, adapter = plain.get_submodule(name), own[prefix + name]
        assert isinstance(base, nn.Linear)
        wanted = adapter.delta(base.weight.detach())
        assert (changed.weight - base.weight - wanted).norm() <= 1e-5 * wanted.norm(), name
        wanted = torch.zeros(16) if adapter.bias is None else adapter.bias.delta((16,))
        assert (changed.bias - base.bias - wanted).norm() <= 1e-5 * max(float(wanted.norm()), 1.0), name
