"""Numbers that the new file's type cannot hold are refused or said, whichever tensors are read back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from baking import FP8, UNET, Tensors, bake, base_tensors, entry, every_block, lora, names, save_base
from safetensors.torch import load_file, save_file

from lycoris_algos.cli import main
from lycoris_algos.errors import BadValueError, LycorisError
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import bake_report, plan_bake, run_bake, weights

KEY = f"{UNET}blocks.3.linear.weight"
OTHER = f"{UNET}blocks.5.linear.weight"
LAYER = "lora_unet_blocks_3_linear"


def with_value(value: float, dtype: torch.dtype, key: str = KEY) -> Tensors:
    """``base_tensors`` with one weight of ``value``."""
    tensors = base_tensors(dtype)
    tensors[key][2, 3] = value
    return tensors


def merged(base: Path, dtype: torch.dtype | None = None, seed: int = 0, **options: Any) -> Any:
    """A LoRA on one block of the base."""
    plan = plan_bake(read_header(base), [entry({LAYER: lora()})], dtype, base=base.name, seed=seed)
    return run_bake(plan, base, base.with_name("out.safetensors"), **options)


CASES = {
    "a change passes fp16": (torch.float16, None, KEY, 65504.0, "beyond the largest number of float16"),
    "bf16 that only is converted": (torch.bfloat16, torch.float16, OTHER, 1e5, "float16"),
    "fp32 that only is converted": (torch.float32, torch.float16, OTHER, 7e4, "float16"),
    "changed and cut to fp8": (torch.float16, FP8, KEY, 5000.0, "float8_e4m3fn, 448"),
    "untouched and cut to fp8": (torch.float16, FP8, OTHER, 5000.0, "float8_e4m3fn, 448"),
    "fp8 of more range": (torch.float32, torch.float8_e5m2, KEY, 70000.0, "float8_e5m2"),
    "infinite in the base": (torch.float16, None, KEY, math.inf, "the base model itself"),
    "NaN in the base": (torch.float16, None, KEY, math.nan, "the base model itself"),
    "NaN in the base, to bf16": (torch.float16, torch.bfloat16, OTHER, math.nan, "the base model itself"),
    "NaN in the base, to fp8": (torch.float16, FP8, OTHER, math.nan, "the base model itself"),
    "NaN in the base, fp32": (torch.float32, None, KEY, math.nan, "the base model itself"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_what_a_number_type_cannot_hold(case: str, seed: int, tmp_path: Path) -> None:
    stored, dtype, key, value, words = CASES[case]
    base = save_base(tmp_path, with_value(value, stored, key))
    if value == 65504.0:  # the largest of fp16, which every change in its direction passes
        change = {LAYER: {"diff": torch.full((24, 16), 100.0)}}
        plan = plan_bake(read_header(base), [entry(change)], dtype, base=base.name, seed=seed)
    else:
        plan = plan_bake(read_header(base), [entry({LAYER: lora()})], dtype, base=base.name, seed=seed)
    with pytest.raises(BadValueError, match=words) as refused:
        run_bake(plan, base, tmp_path / "out.safetensors")
    assert key in str(refused.value)
    assert names(tmp_path) == ["base.safetensors"]

    result = run_bake(plan, base, tmp_path / "out.safetensors", refuse_overflow=False)
    (problem,) = result.unheld
    assert problem.name == key
    assert words in bake_report(result)
    written = load_file(result.path)[key].float()
    if dtype in (FP8, torch.float8_e5m2) and not math.isnan(value):
        assert float(written[2, 3]) == torch.finfo(dtype).max
        assert written.isfinite().all()
    else:
        assert int(written.isfinite().sum()) == written.numel() - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_largest_number_is_no_fault(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_base(tmp_path, with_value(torch.finfo(torch.float16).max, torch.float32, OTHER))
    result = merged(base, dtype)
    assert not result.unheld
    assert "cannot hold" not in bake_report(result)
    assert float(load_file(result.path)[OTHER][2, 3]) == pytest.approx(65504, rel=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_number_in_scaled_fp8(bad: float, tmp_path: Path) -> None:
    """The new scale is that of the other numbers, and what is broken is said."""
    tensors = base_tensors(torch.float32)
    stored = (tensors[KEY] / 0.001).to(FP8)
    tensors |= {KEY: stored, f"{UNET}blocks.3.linear.scale_weight": torch.tensor(0.001)}
    scaled = lora()
    scaled["lora_up.weight"][0, 0] = 3e38 if math.isinf(bad) else 1.0
    scaled["alpha"] = torch.tensor(1e10)
    if math.isnan(bad):
        tensors[KEY].view(torch.uint8)[0, 0] = 0x7F
        scaled = lora()
    base = save_base(tmp_path, tensors)
    with pytest.raises(BadValueError, match="NaN or infinite"):
        bake(base, entry({LAYER: scaled}))
    result = bake(base, entry({LAYER: scaled}), refuse_overflow=False)
    assert [problem.name for problem in result.unheld] == [KEY]
    written = load_file(result.path)
    assert written[f"{UNET}blocks.3.linear.scale_weight"].isfinite()
    assert written[KEY][1:].float().abs().sum() > 0


def test_the_proof_compares_with_the_exact_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that would not notice what fp8 cuts is found out by what is read back."""
    base = save_base(tmp_path, with_value(5000.0, torch.float16))
    real = weights.Weights.make

    def blind(self: Any, item: Any, device: torch.device) -> Any:
        baked = real(self, item, device)
        return weights.Baked(baked.tensor, weights.Extremes(), baked.scale)

    monkeypatch.setattr(weights.Weights, "make", blind)
    with pytest.raises(LycorisError, match="differ from the live weight"):
        bake(base, entry(every_block()), dtype=FP8)
    assert names(tmp_path) == ["base.safetensors"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path, with_value(1e5, torch.bfloat16, OTHER))
    change = tmp_path / "a.safetensors"
    save_file({f"{LAYER}.{name}": value for name, value in lora().items()}, change)
    command = ["merge", str(base), str(change), "-o", str(tmp_path / "out.safetensors"), "--dtype", "fp16"]
    assert main(command) == 1
    assert OTHER in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert main([*command, "--overflow", "report"]) == 0
    assert OTHER in capsys.readouterr().out
    assert load_file(tmp_path / "out.safetensors")[OTHER].isinf().sum() == 1
