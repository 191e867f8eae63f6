"""Several processes (DDP, FSDP2) train what one process trains, and save one file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import lycoris_algos

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "distributed_training.py"

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no processes on the CPU"
)


def run(how: str, algorithm: str, file: Path, processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), SCRIPT, how, algorithm, file]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("how", "algorithm"), [("ddp", "lora"), ("fsdp", "lokr")])
def test_two_processes_train_what_one_does(how: str, algorithm: str, tmp_path: Path) -> None:
    run(how, algorithm, tmp_path / "one.safetensors", 1)
    run(how, algorithm, tmp_path / "two.safetensors", 2)
    assert len(list(tmp_path.iterdir())) == 2
    one, two = (lycoris_algos.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert list(one) == list(two)
    for name, layer in one.items():
        shape = layer.matrix_shape
        assert shape is not None
        change = layer.delta(shape)
        assert change.abs().max() > 1e-4
        torch.testing.assert_close(two[name].delta(shape), change, rtol=1e-4, atol=1e-6)
