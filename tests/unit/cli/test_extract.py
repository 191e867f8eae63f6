"""``python -m lycoris_algos extract``: LyCORIS' options, the report, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_shapes import UNET
from extracting import changed, drawn, write

import lycoris_algos
from lycoris_algos.cli import main

LINEAR, CONV = f"{UNET}blocks.0.linear.weight", f"{UNET}blocks.0.conv.weight"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    own = drawn({LINEAR: (24, 16), CONV: (16, 8, 3, 3), f"{UNET}norm.weight": (16,)})
    draw = {key: 0.1 * torch.randn(value.shape) for key, value in own.items()}
    return str(write(tmp_path, "base", own)), str(write(tmp_path, "tuned", changed(own, draw)))


def ranks(path: Path) -> list[int | None]:
    adapters = lycoris_algos.load(path)
    layers = sorted(adapters.items(), key=lambda item: ("linear" not in item[0], item[0]))
    return [None if layer.algorithm is None else layer.algorithm.rank for _, layer in layers]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("--linear_dim 3 --conv_dim 2", [3, 2, None]),
        ("--linear-dim 3 --conv-dim 2 --as tucker-lora", [3, 2, None]),
        ("--linear-dim 3 --conv-dim 2 --as tucker-lora --disable_cp", [3, 2, None]),
        ("--mode quantile --linear_quantile 0.3 --conv_quantile 0.01", [3, 1, None]),
        ("--mode full", [None, None, None]),
        ("--mode ratio --linear_ratio 0.99 --conv_ratio 0.99", [1, 1, None]),
        ("--linear_dim 2 --conv_dim 1 --no-norms-and-biases", [2, 1]),
        ("--linear_dim 2 --conv_dim 1 --include linear", [2]),
    ],
)
def test_options_of_extract_locon(
    pair: tuple[str, str], arguments: str, wanted: list[int | None], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["extract", *pair, "-o", str(out), "--dialect", "comfy", *arguments.split()]) == 0
    assert ranks(out) == wanted
    mids = [
        layer.to_tensors().get("lora_mid.weight") is not None for layer in lycoris_algos.load(out).values()
    ]
    assert any(mids) == ("tucker" in arguments and "disable" not in arguments)


def test_a_report_a_path_and_a_plan(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    arguments = ["extract", *pair, "-o", str(out), "--mode", "size", "--size", "0.006", "--as", "auto"]
    assert main([*arguments, "--plan"]) == 0
    assert "size budget 0.006 MB" in capsys.readouterr().out
    assert not out.exists()
    assert main(arguments) == 0
    *report, path = capsys.readouterr().out.splitlines()
    assert Path(path) == out
    assert any("in the same 0.01 MB" in line for line in report)
    assert out.stat().st_size <= 6000
    assert main([*arguments, "-q"]) == 0
    assert capsys.readouterr().out.strip().endswith("out_00002.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "size"], "--mode size needs --size"),
        (["--mode", "ratio", "--linear_ratio", "0.5"], "needs --conv_ratio"),
        (["--mode", "threshold"], "needs --linear_threshold"),
        (["--linear_dim", "0"], "whole number"),
        (["--use_sparse_bias", "--sparsity", "2"], "sparsity"),
    ],
)
def test_what_is_missing_is_said(
    pair: tuple[str, str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["extract", *pair, "-o", str(tmp_path / "out.safetensors"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_sparse_residual_is_stored(pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["extract", *pair, "-o", str(out), "--linear_dim", "1", "--use_sparse_bias"]) == 0
    assert any("sparse residual" in layer.titles for layer in lycoris_algos.load(out).values())
