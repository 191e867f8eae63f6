"""Adapters stored as fp8: what it cannot hold is refused, its range is used, and what is lost is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lycoris_algos
from lycoris_algos import convert
from lycoris_algos.cli import main
from lycoris_algos.errors import BadValueError
from lycoris_algos.merge.combine import CombineOptions, plan_combine, run_combine
from lycoris_algos.network import StackEntry

LAYER = "lora_unet_blocks_3_linear"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def draw(*shape: int, size: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * size


def lora(size: float, layer: str = LAYER) -> dict[str, Tensor]:
    stored = {"lora_up.weight": draw(24, 4, size=size), "lora_down.weight": draw(4, 16, size=0.05)}
    return {f"{layer}.{name}": value for name, value in stored.items()}


def loha(size: float) -> dict[str, Tensor]:
    stored = {f"hada_w{n}_a": draw(24, 2, size=size) for n in (1, 2)}
    stored |= {f"hada_w{n}_b": draw(2, 16, size=0.1) for n in (1, 2)} | {"alpha": torch.tensor(1.0)}
    return {f"{LAYER}.{name}": value for name, value in stored.items()}


def lokr(size: float) -> dict[str, Tensor]:
    stored = {"lokr_w1": draw(4, 4, size=size), "lokr_w2_a": draw(6, 2), "lokr_w2_b": draw(2, 4, size=0.01)}
    return {f"{LAYER}.{name}": value for name, value in stored.items()}


def lost(before: Tensor, after: Tensor) -> float:
    return float((before - after).norm() / before.norm())


@pytest.mark.parametrize("make", [lora, loha, lokr])
@pytest.mark.parametrize("size", [1e-5, 3e-4, 1.0, 1e5])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_its_range_is_used(make: object, size: float, dtype: torch.dtype, tmp_path: Path) -> None:
    adapters = lycoris_algos.from_tensors(make(size))  # type: ignore[operator]
    stored = convert(adapters, dtype=dtype)
    change = adapters[LAYER].delta((24, 16))
    loss = lost(change, stored[LAYER].delta((24, 16)))
    assert loss < (0.08 if dtype is E4M3 else 0.15)
    (note,) = stored.notes
    assert "off by" in note
    assert f"{LAYER!r}" in note
    back = lycoris_algos.load(lycoris_algos.save(stored, tmp_path / "a.safetensors"))
    assert torch.equal(back[LAYER].delta((24, 16)), stored[LAYER].delta((24, 16)))

    combined = run_combine(plan_combine([StackEntry(adapters)], CombineOptions(dtype=dtype))).adapters
    assert lost(change, combined[LAYER].delta((24, 16))) < (0.08 if dtype is E4M3 else 0.15)


def test_what_has_no_alpha_is_said_or_refused() -> None:
    name = "transformer.blocks.3.attn.to_q"
    small = lycoris_algos.from_tensors(lora(3e-4, name))
    (note,) = convert(small, dtype=E4M3, dialect="diffusers").notes
    assert "100%" in note
    with pytest.raises(BadValueError, match="too large for float8_e4m3fn"):
        convert(lycoris_algos.from_tensors(lora(1e5, name)), dtype=E4M3, dialect="diffusers")


@pytest.mark.parametrize(("dtype", "value"), [(E4M3, 500.0), (E5M2, 7e4), (torch.float16, 7e4)])
def test_whole_changes_are_not_cut(dtype: torch.dtype, value: float) -> None:
    adapters = lycoris_algos.from_tensors({f"{LAYER}.diff": torch.full((24, 16), value)})
    with pytest.raises(BadValueError, match="too large for"):
        convert(adapters, dtype=dtype)
    with pytest.raises(BadValueError, match=f"layer '{LAYER}': 'diff' reaches"):
        run_combine(plan_combine([StackEntry(adapters)], CombineOptions(dtype=dtype)))


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(lora(3e-4), tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "a.safetensors"), "-o", str(out), "--dtype", "fp8-e4m3"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "off by" in printed.err
