"""Every object of the library shows itself in a line: ComfyUI sends that of what a failed node was given."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import lycoris_algos
from lycoris_algos import from_tensors
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import plan_bake, run_bake
from lycoris_algos.merge.combine import plan_combine, run_combine
from lycoris_algos.network import StackEntry
from lycoris_algos.text import Brief


def _classes() -> Iterator[type[Any]]:
    modules = [info.name for info in pkgutil.walk_packages(lycoris_algos.__path__, "lycoris_algos.")]
    for module in map(importlib.import_module, (name for name in modules if not name.endswith("__main__"))):
        yield from (
            v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__
        )


#: Dataclasses of a few numbers and words that Python's own repr shows in less than a line or two.
SMALL = {"Part", "Rule", "Located", "RankRule", "CombineOptions", "KeySpec", "Difference", "FusedRows"}
SMALL |= {"Parameter", "Parameters", "MergeMethod"}


def test_every_dataclass_has_a_short_repr() -> None:
    classes = [
        cls for cls in _classes() if dataclasses.is_dataclass(cls) and not cls.__name__.startswith("_")
    ]
    assert {cls.__qualname__ for cls in classes if not issubclass(cls, Brief)} <= SMALL
    # A dataclass writes one of its own unless it finds one.
    own = [cls for cls in classes if issubclass(cls, Brief) and hasattr(cls.__repr__, "__wrapped__")]
    assert own == []


def _parts(value: object, seen: dict[int, object]) -> Iterator[object]:
    """``value`` and everything in it."""
    if id(value) in seen or isinstance(value, (str, Tensor, type)):
        return
    seen[id(value)] = value
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name), seen)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _parts(item, seen)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item, seen)


def test_plans_and_results_have_a_repr_of_a_line(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for i in range(80):
        layer = f"lora_unet_blocks_{i}_linear"
        tensors[f"{layer}.lora_up.weight"], tensors[f"{layer}.alpha"] = torch.ones(24, 2), torch.ones(())
        tensors[f"{layer}.lora_down.weight"] = torch.ones(2, 16)
    tensors |= {f"stranger{i}": torch.zeros(1) for i in range(80)}
    loaded = from_tensors(tensors, {"modelspec.description": "d" * 10_000}, name="n" * 200)
    save_file(
        {f"model.diffusion_model.blocks.{i}.linear.weight": torch.randn(24, 16) for i in range(80)},
        tmp_path / "b",
    )
    plan = plan_bake(read_header(tmp_path / "b"), [StackEntry(loaded)])
    combination = plan_combine([StackEntry(loaded), StackEntry(loaded)])
    everything = (
        plan,
        run_bake(plan, tmp_path / "b", tmp_path / "out"),
        combination,
        run_combine(combination),
    )
    shown = [repr(item) for item in _parts(everything, {})]
    assert len(shown) > 1000
    assert max(map(len, shown)) < 300
    assert all("\n" not in text and "tensor(" not in text for text in shown)
    assert repr(loaded["lora_unet_blocks_0_linear"].algorithm) == (
        "LoRA(lora_up.weight 24×2, lora_down.weight 2×16)"
    )
