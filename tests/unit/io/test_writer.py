"""The writer: the official library's bytes, and no trace unless the file is whole."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from baking import save_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import run_python
from raw_tensors import DTYPES, random_bytes
from safetensors.torch import load_file, save

from lycoris_algos.errors import FileFormatError, LycorisError
from lycoris_algos.io import (
    SafetensorsReader,
    SafetensorsWriter,
    _part,
    read_all,
    read_header,
    save_tensors,
)

ROOT = Path(__file__).parents[3]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the bytes ---------------------------------------------------------------------------------


def test_every_dtype_gives_the_official_bytes(tmp_path: Path) -> None:
    tensors = {
        f"{dtype}{shape}": random_bytes(dtype, shape)
        for dtype in DTYPES
        for shape in [(), (3,), (0,), (2, 3, 5)]
    }
    path = save_tensors(tmp_path / "x.safetensors", tensors, {"z": "1", "ä": 'quote " \n'})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    # Releases of the official library differ in how they sort metadata, so here it is one text.
    path = save_tensors(tmp_path / "y.safetensors", tensors, {"ä": 'quote " \n'})
    assert path.read_bytes() == save(tensors, {"ä": 'quote " \n'})


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    plan=st.dictionaries(
        TEXTS,
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=8,
    ),
    metadata=st.dictionaries(TEXTS, TEXTS, max_size=1),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_table_gives_the_official_bytes_and_comes_back(
    tmp_path: Path, plan: dict[str, tuple[torch.dtype, list[int]]], metadata: dict[str, str]
) -> None:
    tensors = {name: random_bytes(dtype, tuple(shape)) for name, (dtype, shape) in plan.items()}
    path = save_tensors(tmp_path / "x.safetensors", tensors, metadata)
    try:
        assert path.read_bytes() == save(tensors, metadata or None)
        got, got_metadata = read_all(path)
        assert got_metadata == metadata
        for name, tensor in tensors.items():
            assert torch.equal(got[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    finally:
        path.unlink()


def test_any_strides_and_views_are_written_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "slice": base[:, 1:, ::2],
        "expanded": torch.ones(1).expand(5),
        "one, with strides of 0": torch.ones(()).expand(1, 1),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, tensors[name].detach()), name


def test_header_and_tensors_are_aligned(tmp_path: Path) -> None:
    plan = {"a": (torch.uint8, (3,)), "b": (torch.float64, (2,)), "c": (torch.float16, (5,))}
    with SafetensorsWriter(tmp_path / "x.safetensors", plan) as out:
        assert out.order == ("b", "c", "a")
        for name in out.order:
            out.write(name, torch.zeros(plan[name][1], dtype=plan[name][0]))
    assert out.path.stat().st_size == out.file_size
    assert int.from_bytes(out.path.read_bytes()[:8], "little") % 8 == 0


# --- failures ----------------------------------------------------------------------------------

PLAN = {"a": (torch.float32, (2,)), "b": (torch.float32, (3,))}


def write_half_and_raise(out: SafetensorsWriter, error: type[BaseException]) -> None:
    with out:
        out.write("a", torch.zeros(2))
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_any_exception_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    out = SafetensorsWriter(tmp_path / "x.safetensors", PLAN)
    with pytest.raises(error):
        write_half_and_raise(out, error)
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="not finished"):
        _ = out.path


def test_until_it_is_whole_the_file_is_hidden(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x.safetensors", PLAN) as out:
        out.write("a", torch.zeros(2))
        assert names(tmp_path) == [f".x.safetensors.{os.getpid()}.part"]
        out.write("b", torch.zeros(3))
    assert names(tmp_path) == ["x.safetensors"]


MISUSES = {
    "wrong order": (("b", torch.zeros(3)), "write 'a' next, not 'b'"),
    "unknown name": (("c", torch.zeros(3)), "write 'a' next, not 'c'"),
    "wrong dtype": (("a", torch.zeros(2).half()), "announced as torch.float32"),
    "wrong shape": (("a", torch.zeros(1, 2)), r"announced as torch.float32 \(2,\)"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_a_write_that_was_not_announced(case: str, tmp_path: Path) -> None:
    (name, tensor), message = MISUSES[case]
    with (
        pytest.raises(ValueError, match=message),
        SafetensorsWriter(tmp_path / "x.safetensors", PLAN) as out,
    ):
        out.write(name, tensor)
    assert names(tmp_path) == []


def test_a_write_too_many_or_too_few(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="written twice"),
        SafetensorsWriter(tmp_path / "x.safetensors", {}) as out,
    ):
        out.write("a", torch.zeros(2))
    with (
        pytest.raises(ValueError, match="not complete, the next to be written: 'b'"),
        SafetensorsWriter(tmp_path / "x.safetensors", PLAN) as out,
    ):
        out.write("a", torch.zeros(2))
    assert names(tmp_path) == []


def test_a_writer_is_used_once_and_in_a_with_block(tmp_path: Path) -> None:
    out = SafetensorsWriter(tmp_path / "x.safetensors", PLAN)
    with pytest.raises(ValueError, match="not open"):
        out.write("a", torch.zeros(2))
    assert names(tmp_path) == []
    with out:
        for name in out.order:
            out.write(name, torch.zeros(PLAN[name][1]))
    with pytest.raises(ValueError, match="once"):
        out.__enter__()


def test_what_the_format_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileFormatError, match=r"'x\.safetensors': .* cannot hold .*complex128"):
        save_tensors(path, {"a": torch.zeros(1, dtype=torch.complex128)})
    with pytest.raises(ValueError, match="__metadata__"):
        save_tensors(path, {"__metadata__": torch.zeros(1)})
    for bad in ({"k": "\ud800"}, {"\ud800": "v"}, {"k": 1}):
        with pytest.raises(ValueError, match="cannot hold the text"):
            save_tensors(path, {}, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot hold the text"):
        save_tensors(path, {"\ud800": torch.zeros(1)})
    assert names(tmp_path) == []


def test_a_missing_folder_and_an_overlong_name(tmp_path: Path) -> None:
    with pytest.raises(LycorisError, match=r"'x\.safetensors': there is no folder '.*none'"):
        save_tensors(tmp_path / "none" / "x.safetensors", {})
    with pytest.raises(LycorisError, match="choose a shorter one"):
        save_tensors(tmp_path / ("x" * 250), {})
    assert names(tmp_path) == []


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1_500_000))
    with pytest.raises(LycorisError, match=r"no space left .* needs 2\.0 MB, there is 1\.5 MB"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(500_000)})
    assert names(tmp_path) == []
    # A file system that reports nothing is no full disk.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(500_000)})


def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _part.PartFile.write

    def write(self: _part.PartFile, data: memoryview) -> None:
        if len(data) > 1_000_000:
            original(self, data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, data)

    monkeypatch.setattr(_part.PartFile, "write", write)
    out = SafetensorsWriter(tmp_path / "x.safetensors", {"a": (torch.float32, (500_000,))})
    with out:
        with pytest.raises(LycorisError, match=r"'x\.safetensors': no space left in folder"):
            out.write("a", torch.zeros(500_000))
        # A caller that swallows the error cannot get a half-written file.
        assert names(tmp_path) == []
        with pytest.raises(ValueError, match="not open"):
            out.write("a", torch.zeros(500_000))
    assert names(tmp_path) == []


@posix_only
def test_a_limit_of_the_system_leaves_nothing(tmp_path: Path) -> None:
    process = run_python(
        tmp_path,
        """
        import resource, torch
        from pathlib import Path
        from lycoris_algos.errors import LycorisError
        from lycoris_algos.io import save_tensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            save_tensors(Path("x.safetensors"), {"a": torch.zeros(500_000)})
        except LycorisError as error:
            print(error)
        """,
    )
    output, _ = process.communicate(timeout=60)
    assert "'x.safetensors': a file of 2.0 MB is larger than" in output
    assert names(tmp_path) == []


# ---- in a given order, with copies of another file ---------------------------------------------------------


def test_the_writer_refuses_what_was_not_announced(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    header = read_header(base)
    plan = {key: (info.dtype, info.shape) for key, info in header.tensors.items()}
    order = list(plan)
    with pytest.raises(ValueError, match="every tensor once"):
        SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order[:-1])
    writer = SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order)
    with SafetensorsReader(base) as reader:
        with pytest.raises(ValueError, match="not the next"), writer:
            writer.copy(reader, order[1], order[2])
        writer = SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order)
        with pytest.raises(ValueError, match="not been written"), writer:
            writer.replace(order[0], reader[order[0]])
        writer = SafetensorsWriter(tmp_path / "x.safetensors", plan, order=order)
        with writer:
            writer.copy(reader, order[0], order[-1])
            other = reader[order[3]] + 1
            writer.replace(order[3], other)
            assert writer.unpublished.name.endswith(".part")
    after = load_file(writer.path)
    assert torch.equal(after[order[3]], other)
    assert all(torch.equal(after[key], value) for key, value in load_file(base).items() if key != order[3])
    with pytest.raises(ValueError, match="not open"):
        _ = writer.unpublished
