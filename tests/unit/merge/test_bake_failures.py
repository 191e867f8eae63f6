"""Bakes that go wrong: what is done again, what is refused, and that nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from baking import FP8, UNET, bake, base_tensors, entry, every_block, names, save_base
from processes import run_python
from safetensors.torch import save_file
from torch import Tensor

from lycoris_algos.errors import CancelledError, FileFormatError, LycorisError
from lycoris_algos.io import _copy, read_header
from lycoris_algos.merge.bake import bake_report, plan_bake, run_bake, weights

ROOT = Path(__file__).parents[3]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")


def test_cancel_at_each_tensor_leaves_nothing(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    asked = 0
    while True:
        calls = 0

        def cancel(stop_at: int = asked) -> bool:
            nonlocal calls
            calls += 1
            return calls > stop_at

        try:
            bake(base, entry(every_block()), cancel=cancel)
        except CancelledError:
            assert names(tmp_path) == ["base.safetensors"]
            asked += 1
            continue
        break
    assert asked > 12, "between all tensors, and while checking"


def test_the_callers_own_exception_passes_through(tmp_path: Path) -> None:
    base = save_base(tmp_path)

    class Stop(BaseException):
        pass

    def cancel() -> bool:
        raise Stop

    with pytest.raises(Stop):
        bake(base, entry(every_block()), cancel=cancel)
    assert names(tmp_path) == ["base.safetensors"]


@pytest.mark.parametrize("dtype", [None, torch.float32, FP8])
@pytest.mark.parametrize("layer", [0, 3, 5])
def test_out_of_memory_is_done_again(
    layer: int, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    expected = bake(base, entry(every_block()), dtype=dtype).path.read_bytes()
    calls, real = 0, weights.apply_

    def failing(weight: Tensor, *args: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == layer + 1:
            weight.fill_(torch.nan)  # whatever was half done must not show
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(weight, *args, **options)

    monkeypatch.setattr(weights, "apply_", failing)
    result = bake(base, entry(every_block()), dtype=dtype)
    assert result.path.read_bytes() == expected
    assert result.redone == (f"{UNET}blocks.{layer}.linear.weight",)
    assert "did not fit" in bake_report(result)


def test_a_wrong_weight_is_found_and_no_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    real = weights.Weights.make

    def wrong(self: Any, item: Any, device: torch.device) -> Any:
        baked = real(self, item, device)
        baked.tensor[3, 5] += 0.01
        return baked

    monkeypatch.setattr(weights.Weights, "make", wrong)
    with pytest.raises(LycorisError, match="differ from the live weight"):
        bake(base, entry(every_block()))
    assert names(tmp_path) == ["base.safetensors"]


def test_a_base_that_changes_in_between_is_noticed(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    plan = plan_bake(read_header(base), [entry(every_block())])
    save_base(tmp_path, base_tensors(torch.float32))
    with pytest.raises(FileFormatError, match="changed since"):
        run_bake(plan, base, tmp_path / "out.safetensors")


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, None])
def test_copies_without_the_kernels_help(
    refusal: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    expected = bake(base, entry(every_block())).path.read_bytes()

    def refused(*_: object) -> int:
        raise OSError(refusal, os.strerror(refusal or 0))

    monkeypatch.setattr(_copy, "_in_kernel", None if refusal is None else refused)
    assert bake(base, entry(every_block())).path.read_bytes() == expected


def test_a_short_kernel_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if _copy._in_kernel is None:
        pytest.skip("this system has none")
    base = save_base(tmp_path)
    expected = bake(base, entry(every_block())).path.read_bytes()
    monkeypatch.setattr(_copy, "_in_kernel", lambda s, t, n, at: os.copy_file_range(s, t, min(n, 13), at))
    assert bake(base, entry(every_block())).path.read_bytes() == expected


_SLOW = """
    import sys, time
    from pathlib import Path
    from lycoris_algos import load
    from lycoris_algos.io import read_header
    from lycoris_algos.merge.bake import plan_bake, run_bake
    from lycoris_algos.network import StackEntry
    base = Path("base.safetensors")
    plan = plan_bake(read_header(base), [StackEntry(load("a.safetensors"))])
    def progress(done, total, what):
        if done > 4:
            print("half", flush=True)
            time.sleep(SLEEP)
    try:
        print(run_bake(plan, base, "out.safetensors", progress=progress).path)
    except Exception as error:
        print(type(error).__name__, error)
"""


def _files(folder: Path) -> None:
    save_base(folder)
    tensors = {f"{layer}.{name}": v for layer, own in every_block().items() for name, v in own.items()}
    save_file(tensors, folder / "a.safetensors")


@posix_only
def test_a_killed_run_leaves_no_model_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    _files(tmp_path)
    with run_python(tmp_path, _SLOW.replace("SLEEP", "60")) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "half"
        process.send_signal(signal.SIGKILL)
    left = [name for name in names(tmp_path) if name not in ("a.safetensors", "base.safetensors")]
    assert len(left) == 1
    assert left[0].startswith(".out.safetensors.")
    assert left[0].endswith(".part")

    bake(tmp_path / "base.safetensors", entry(every_block()))

    assert names(tmp_path) == ["a.safetensors", "base.safetensors", "out.safetensors"]


@posix_only
def test_a_limit_of_the_files_size_leaves_nothing(tmp_path: Path) -> None:
    _files(tmp_path)
    size = (tmp_path / "base.safetensors").stat().st_size
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
    process = run_python(tmp_path, limit + textwrap.dedent(_SLOW.replace("SLEEP", "0")))
    output, _ = process.communicate(timeout=60)
    assert "LycorisError" in output
    assert "may hold" in output
    assert names(tmp_path) == ["a.safetensors", "base.safetensors"]
