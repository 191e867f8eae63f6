"""``python -m lycoris_algos combine`` and ``convert``, as a script uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lycoris_algos
from lycoris_algos.cli import main
from lycoris_algos.cli._shared import weighted_file

LAYER = "lora_unet_block_0_to_q"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two LoRAs."""
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for rank, path in zip((4, 6), paths, strict=True):
        tensors = {
            f"{LAYER}.lora_up.weight": torch.randn(32, rank),
            f"{LAYER}.lora_down.weight": torch.randn(rank, 24),
        }
        save_file(tensors, path)
    return paths


def delta(path: Path) -> torch.Tensor:
    return lycoris_algos.load(path)[LAYER].delta((32, 24))


def test_combine(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["combine", f"{files[0]}:0.5", str(files[1]), "-o", str(out)]) == 0
    assert torch.allclose(delta(out), 0.5 * delta(files[0]) + delta(files[1]), atol=1e-5)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(out)
    assert "keeps 100 %" in printed
    again = [
        "combine",
        *map(str, files),
        "-o",
        str(out),
        "--rank",
        "3",
        "--method",
        "ties",
        "-q",
        "--dtype",
        "fp16",
    ]
    assert main(again) == 0
    second = tmp_path / "out_00002.safetensors"
    assert capsys.readouterr().out.strip() == str(second)
    core = lycoris_algos.load(second)[LAYER].algorithm
    assert core is not None
    assert core.rank == 3


def test_a_plan_writes_nothing(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["combine", *map(str, files), "-o", str(out), "--plan"]) == 0
    assert "sum of 2 adapter sets" in capsys.readouterr().out
    assert not out.exists()


def test_convert(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", f"{files[0]}:0.5", "-o", str(out), "--dtype", "bf16"]) == 0
    assert torch.allclose(delta(out), 0.5 * delta(files[0]), atol=0.05)
    assert all(
        t.dtype == torch.bfloat16 for t in lycoris_algos.network.to_tensors(lycoris_algos.load(out)).values()
    )


@pytest.mark.parametrize("option", ["--model", "--base"])
def test_the_model_tells_how_another_dialect_spells_layers(
    option: str, files: list[Path], tmp_path: Path
) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file({"block_0.to.q.weight": torch.zeros(32, 24)}, base)
    assert main(["convert", str(files[0]), "-o", str(out), "--dialect", "comfy", option, str(base)]) == 0
    assert list(lycoris_algos.load(out)) == ["diffusion_model.block_0.to.q"]


def test_errors_have_an_exit_code_and_a_reason(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.safetensors")
    assert main(["convert", str(files[0]), "-o", out, "--dialect", "comfy"]) == 1
    assert "Give the model" in capsys.readouterr().err
    assert main(["combine", str(tmp_path / "missing.safetensors"), "-o", out]) == 1
    assert "missing.safetensors" in capsys.readouterr().err
    for wrong in (["combine"], ["nonsense"], ["combine", "x", "-o", "y", "--rank", "1", "--energy", "1"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.safetensors", ("a.safetensors", 1.0, 1.0)),
        ("a:0.5", ("a", 0.5, 0.5)),
        ("a:0.5:-1", ("a", 0.5, -1.0)),
        ("C:\\x\\a.safetensors:2", ("C:\\x\\a.safetensors", 2.0, 2.0)),
        ("C:\\a.safetensors", ("C:\\a.safetensors", 1.0, 1.0)),
    ],
)
def test_strengths_behind_colons(text: str, wanted: tuple[str, float, float]) -> None:
    path, model, clip = weighted_file(text)
    assert (str(path), model, clip) == wanted


def test_a_base_file_makes_dora_a_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.randn(32, 24)
    names = [f"model.diffusion_model.block.{number}.to_q.weight" for number in range(6)]
    base, dora, out = (tmp_path / f"{name}.safetensors" for name in ("base", "dora", "out"))
    save_file({name: weight.clone() for name in names}, base)
    factors = {"lora_up.weight": torch.randn(32, 4), "lora_down.weight": torch.randn(4, 24)}
    tensors = {**factors, "dora_scale": torch.rand(32, 1) + 1}
    save_file({f"{LAYER}.{suffix}": value for suffix, value in tensors.items()}, dora)
    command = ["combine", f"{dora}:0.5", "-o", str(out), "--as", "lora"]
    assert main(command) == 1
    assert "give the base model" in capsys.readouterr().err
    assert main([*command, "--base", str(base)]) == 0
    wanted = 0.5 * lycoris_algos.load(dora)[LAYER].delta(weight)
    assert torch.allclose(delta(out), wanted, atol=1e-4)
