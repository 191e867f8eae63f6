"""``python -m lycoris_algos merge``, as a script uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lycoris_algos.cli import main

KEY = "model.diffusion_model.block.0.to_q.weight"
LAYER = "lora_unet_block_0_to_q"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """(checkpoint, adapter) whose change is 1 everywhere."""
    base = {KEY: torch.zeros(8, 4, dtype=torch.float16)}
    base |= {f"model.diffusion_model.rest.{number}.weight": torch.ones(2, 2) for number in range(6)}
    save_file(base, tmp_path / "base.safetensors")
    save_file({f"{LAYER}.diff": torch.ones(8, 4)}, tmp_path / "one.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "one.safetensors"


def test_merge(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, one = files
    out = tmp_path / "out.safetensors"
    assert main(["merge", str(base), f"{one}:0.5", f"{one}:0.25:7", "-o", str(out), "--dtype", "bf16"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(out)
    assert any("1 of 1 layers" in line for line in printed)
    merged = load_file(out)[KEY]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, torch.full((8, 4), 0.75, dtype=torch.bfloat16))

    assert main(["merge", str(base), str(one), "-o", str(out), "-q"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out_00002.safetensors")


def test_a_plan_writes_nothing(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, one = files
    assert main(["merge", str(base), str(one), "-o", str(tmp_path / "out.safetensors"), "--plan"]) == 0
    assert "1 tensors of 'base.safetensors' are changed, 6 are copied" in capsys.readouterr().out
    assert not (tmp_path / "out.safetensors").exists()


def test_what_does_not_fit_is_an_error(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, one = files
    save_file({"lora_unet_other.diff": torch.ones(8, 4)}, one)
    out = ["-o", str(tmp_path / "out.safetensors")]
    assert main(["merge", str(base), str(one), *out]) == 1
    assert "none of the 1 layers of 'one.safetensors'" in capsys.readouterr().err
    assert main(["merge", str(base), str(one), *out, "--refuse", "never", "-q"]) == 0
    assert main(["merge", str(tmp_path / "gone.safetensors"), str(one), *out]) == 1
    assert "gone.safetensors" in capsys.readouterr().err


def test_exit_codes_of_the_program(files: tuple[Path, Path], tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        command = [sys.executable, "-m", "lycoris_algos", "merge", *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode

    base, one = map(str, files)
    assert run("--help") == 0
    assert run(base) == 2
    assert run(base, one, "-o", str(tmp_path / "out.safetensors"), "-q") == 0
    assert run(base, base, "-o", str(tmp_path / "out.safetensors")) == 1
