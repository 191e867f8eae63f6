"""Bakes into models of several files: a folder with the same files comes out, or nothing at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from baking import base_tensors, entry, every_block, lora, names, save_base
from folders import all_files, load_shards, save_pipeline, save_shards
from processes import run_python
from safetensors.torch import load_file

from lycoris_algos.cli import main
from lycoris_algos.errors import CancelledError, LycorisError
from lycoris_algos.io import PartFolder, SafetensorsWriter, _part, read_header, save_tensors
from lycoris_algos.merge.bake import bake_report, plan_bake, run_bake
from lycoris_algos.model_files import Checkpoint, checkpoint_header
from lycoris_algos.network import StackEntry, save

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")


def bake(base: Path, *stack: StackEntry, dtype: torch.dtype | None = None, **options: Any) -> Any:
    plan = plan_bake(checkpoint_header(base), stack, dtype, base=base.name)
    return run_bake(plan, base, base.parent / "out", **options)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    save_shards(tmp_path / "base", base_tensors())
    return tmp_path / "base"


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float8_e4m3fn])
def test_shards_are_what_one_file_becomes(shards: Path, dtype: torch.dtype | None, tmp_path: Path) -> None:
    one = save_base(tmp_path)
    expected = run_bake(
        plan_bake(read_header(one), [entry(every_block(), 0.5)], dtype), one, tmp_path / "one.safetensors"
    )
    result = bake(shards, entry(every_block(), 0.5), dtype=dtype)
    assert result.path == tmp_path / "out"
    assert all_files(result.path) == all_files(shards)
    whole, dealt = load_file(expected.path), load_shards(result.path)
    assert whole.keys() == dealt.keys()
    for key, value in whole.items():
        assert torch.equal(value.view(-1).view(torch.uint8), dealt[key].view(-1).view(torch.uint8)), key
    index = json.loads((result.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["by"] == "test"
    assert index["metadata"]["total_size"] == sum(v.numel() * v.itemsize for v in dealt.values())
    with Checkpoint(result.path) as written:  # which holds the new index against the new shards
        assert "lycoris_algos.bake" in written.metadata
        assert written.metadata["format"] == "pt"
    again = bake(shards / "model.safetensors.index.json", entry(every_block(), 0.5), dtype=dtype)
    assert again.path.parent == shards
    assert load_shards(again.path).keys() == dealt.keys()


def test_a_folder_of_diffusers_keeps_all_that_is_not_weights(tmp_path: Path) -> None:
    unet = {
        key.partition("diffusion_model.")[2]: value
        for key, value in base_tensors().items()
        if "blocks" in key
    }
    vae = {"conv.weight": torch.ones(8, 4, 3, 3)}
    base = save_pipeline(tmp_path / "base", {"unet": unet, "vae": vae}, sharded="unet")
    (base / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old weights")
    before = {path: (base / path).read_bytes() for path in all_files(base)}
    result = bake(base, entry({"lora_unet_blocks_2_linear": lora()}))
    assert "left out, since they hold the old weights: unet/diffusion_pytorch_model.bin" in bake_report(
        result
    )
    assert all_files(result.path) == sorted(before.keys() - {"unet/diffusion_pytorch_model.bin"})
    for path in all_files(result.path):
        if path.endswith((".json", ".md")) and "index" not in path:
            assert (result.path / path).read_bytes() == before[path]
    assert {path: (base / path).read_bytes() for path in all_files(base)} == before
    changed = load_shards(result.path / "unet")
    for key, value in unet.items():
        assert torch.equal(changed[key], value) == (key != "blocks.2.linear.weight"), key
    assert torch.equal(
        load_file(result.path / "vae" / "diffusion_pytorch_model.safetensors")["conv.weight"],
        vae["conv.weight"],
    )
    assert bake(base, entry({"lora_unet_blocks_2_linear": lora()})).path.name == "out_00002"


def test_cancel_at_each_tensor_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    asked = 0
    while True:
        calls = 0

        def cancel(stop_at: int = asked) -> bool:
            nonlocal calls
            calls += 1
            return calls > stop_at

        try:
            bake(shards, entry(every_block()), cancel=cancel)
        except CancelledError:
            assert names(tmp_path) == ["base"]
            asked += 1
            continue
        break
    assert asked > 12


@pytest.mark.parametrize("step", ["beside", "index", "shard", "name"])
def test_a_disk_that_fills_up_leaves_nothing(
    step: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / "config.json").write_text("{}")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    owner, method = {
        "beside": (PartFolder, "copy"),
        "index": (PartFolder, "write"),
        "shard": (_part.PartFile, "write"),
        "name": (PartFolder, "publish"),
    }[step]
    monkeypatch.setattr(owner, method, full)
    with pytest.raises(LycorisError, match="no space left"):
        bake(shards, entry(every_block()))
    assert names(tmp_path) == ["base"]


def test_space_for_all_shards_is_asked_for_at_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    size = sum(path.stat().st_size for path in shards.glob("*.safetensors"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, size))

    def write(*_: object) -> None:
        raise AssertionError("nothing is to be written")

    monkeypatch.setattr(SafetensorsWriter, "write", write)
    with pytest.raises(LycorisError, match="no space left"):
        bake(shards, entry(every_block()))
    assert names(tmp_path) == ["base"]


@posix_only
def test_what_a_killed_run_left_is_removed_by_the_next(shards: Path, tmp_path: Path) -> None:
    save(entry(every_block()).adapters, tmp_path / "a.safetensors")
    process = run_python(
        tmp_path,
        """
        import os, time
        from pathlib import Path
        from lycoris_algos import load
        from lycoris_algos.merge.bake import plan_bake, run_bake
        from lycoris_algos.model_files import checkpoint_header
        from lycoris_algos.network import StackEntry

        plan = plan_bake(checkpoint_header(Path("base")), [StackEntry(load("a.safetensors"))])
        def progress(done, total, what):
            if done > 4:
                print("there", flush=True)
                time.sleep(60)
        run_bake(plan, "base", "out", progress=progress)
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "there"
    (part,) = tmp_path.glob(".out.folder.*.part")
    save_tensors(tmp_path / "b.safetensors", {})
    assert part.is_dir(), "its writer lives"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.05)
    save_tensors(tmp_path / "c.safetensors", {})
    assert not part.exists()


def test_in_the_shell(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(entry(every_block()).adapters, tmp_path / "a.safetensors")
    out = tmp_path / "merged"
    assert main(["merge", str(shards), str(tmp_path / "a.safetensors"), "-o", str(out), "-q"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    combined = ["combine", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "b.safetensors")]
    assert main([*combined, "--base", str(shards)]) == 0
    assert main(["merge", str(tmp_path), str(tmp_path / "a.safetensors"), "-o", str(out)]) == 1
    assert "holds" in capsys.readouterr().err
