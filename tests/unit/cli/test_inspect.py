"""``python -m lycoris_algos inspect``, as a script uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lycoris_algos.cli import main
from lycoris_algos.inspection import View

KEY = "model.diffusion_model.block.{}.to_q.weight"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, str]:
    """(a model, two adapter files)."""
    base = {KEY.format(number): torch.full((8, 4), 2.0, dtype=torch.float16) for number in range(6)}
    save_file(base, tmp_path / "base.safetensors")
    for name, value in (("one", 1.0), ("two", -1.0)):
        tensors = {f"lora_unet_block_{number}_to_q.diff": torch.full((8, 4), value) for number in range(6)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return (*(str(tmp_path / f"{name}.safetensors") for name in ("base", "one", "two")),)  # type: ignore[return-value]


def document(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["inspect", "-q", "--json", *arguments]) == 0
    printed: dict[str, object] = json.loads(capsys.readouterr().out)
    return printed


def test_the_overview_is_the_default(files: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    base, one, _ = files
    assert main(["inspect", one]) == 0
    assert capsys.readouterr().out.startswith("one.safetensors: 6 layers\n")
    assert main(["inspect", one, "--base", base]) == 0
    assert "6 of 6 layers fit" in capsys.readouterr().out


@pytest.mark.parametrize("view", View, ids=lambda view: view.value)
def test_every_view(view: View, files: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    base, one, two = files
    arguments = ["--view", view.value, "--base", base]
    assert document([one, f"{two}:0.5", *arguments], capsys)["view"] == view.value
    assert main(["inspect", "-q", one, two, *arguments, "--detail", "layers"]) == 0
    assert "one.safetensors" in capsys.readouterr().out


def test_strengths_count(files: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    _, one, two = files
    found = document([one, f"{two}:0.5", "--view", "compare stack"], capsys)
    norm = (6 * 8 * 4) ** 0.5
    together = found["together"]
    assert isinstance(together, dict)
    assert together["norm_of_sum"] == pytest.approx(0.5 * norm, rel=1e-5)
    assert together["sum_of_norms"] == pytest.approx(1.5 * norm, rel=1e-5)


def test_norms_relative_to_the_base(files: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    base, one, _ = files
    layers = document([one, "--base", base, "--view", "relative to base"], capsys)["layers"]
    assert isinstance(layers, list)
    assert [layer["relative"] for layer in layers] == [0.5] * 6
    assert {layer["target"] for layer in layers} == {KEY.format(number) for number in range(6)}


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_figure(
    ending: str, start: bytes, files: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"figure.{ending}"
    assert main(["inspect", "-q", files[1], "--view", "energy by block", "--figure", str(path)]) == 0
    assert path.read_bytes().startswith(start)
    assert "figure" in capsys.readouterr().err
    assert main(["inspect", "-q", files[1], "--figure", str(path)]) == 1  # never replaced


def test_an_overview_of_what_is_damaged_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.safetensors"
    path.write_bytes(b"nothing")
    assert main(["inspect", str(path)]) == 1
    assert "none.safetensors" in capsys.readouterr().err
