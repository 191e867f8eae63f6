"""Files of training: what is saved here is read by LyCORIS, and what LyCORIS saves goes on here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import moved

from lycoris_algos import training

#: LyCORIS' own loader of (IA)³ fails, and that of T-LoRA's convolutions has other shapes.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", {"use_tucker": True}),
    ("lora", {"dora_wd": True}),
    ("lora", {"use_scalar": True}),
    ("loha", {}),
    ("loha", {"use_tucker": True, "dora_wd": True}),
    ("lokr", {"factor": 4}),
    ("lokr", {"full_matrix": True}),
    ("full", {}),
    ("diag-oft", {"constraint": 1.0, "rescaled": True}),
    ("boft", {}),
    ("glora", {}),
    ("dylora", {"block_size": 2}),
]
every_case = pytest.mark.parametrize(("algorithm", "options"), CASES, ids=lambda value: str(value))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.linear = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).movedim(1, -1))


@pytest.fixture
def lycoris() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lycoris

        yield lycoris


def outputs(network: nn.Module, model: nn.Module) -> Tensor:
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    network.eval()
    network.apply_to()
    output = model(x)
    network.restore()
    return output.detach()


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@every_case
def test_lycoris_reads_what_is_saved_here(
    lycoris: Any, algorithm: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = Model().requires_grad_(False)
    ours = training.create_lycoris(model, 1.0, 4, 2.0, algo=algorithm, train_norm=True, **options)
    moved(ours, 0.05)
    wanted = outputs(ours, model)
    ours.save_weights(tmp_path / "a.safetensors", None, {})
    theirs, _ = lycoris.create_lycoris_from_weights(1.0, str(tmp_path / "a.safetensors"), model)
    close(outputs(theirs, model), wanted)


@every_case
def test_what_lycoris_saves_goes_on_here(
    lycoris: Any, algorithm: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if algorithm == "dylora":
        pytest.skip("LyCORIS trains a random rank also where it is asked for an output")
    model = Model().requires_grad_(False)
    theirs = lycoris.create_lycoris(model, 1.0, 4, 2.0, algo=algorithm, train_norm=True, **options)
    for lora in theirs.loras:
        moved(lora, 0.05)
    wanted = outputs(theirs, model)
    theirs.save_weights(str(tmp_path / "a.safetensors"), None, {})
    ours, _ = training.create_lycoris_from_weights(1.0, tmp_path / "a.safetensors", model)
    close(outputs(ours, model), wanted)
    same = {**options, "algo": algorithm, "train_norm": True}
    resumed = training.create_lycoris(model, 1.0, 4, 2.0, **same)
    assert resumed.load_weights(tmp_path / "a.safetensors") == {}
    close(outputs(resumed, model), wanted)
