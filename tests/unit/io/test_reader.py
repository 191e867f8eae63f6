"""The reader against the official library, and its promise to own what it hands out."""

from __future__ import annotations

import json
import os
import struct
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_tensors import DTYPES, assert_same, random_bytes
from safetensors.torch import load_file, save_file

from lycoris_algos.errors import FileFormatError, LycorisError
from lycoris_algos.io import SafetensorsReader, read_all, reader

SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (2, 3, 5), (1,) * 9]


@pytest.fixture(params=["positional", "seek"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with the system's positional reads and with the portable fallback."""
    if request.param == "seek":
        monkeypatch.setattr(reader, "_preadv", None)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_what_the_official_library_wrote(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {f"t{i}": random_bytes(dtype, shape) for i, shape in enumerate(SHAPES)}
    # A byte in the middle of the order puts narrower dtypes at odd offsets.
    tensors["odd"] = random_bytes(torch.uint8, (3,))
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"k": "ü"})
    got, metadata = read_all(path)
    official = load_file(path)
    assert metadata == {"k": "ü"}
    assert got.keys() == official.keys()
    for name, tensor in got.items():
        assert_same(tensor, official[name])
        assert tensor.is_contiguous()
        assert tensor.device.type == "cpu"


def test_reads_unaligned_tensors(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "wide": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
        }
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\7" + struct.pack("<2d", 1.5, -2))
    tensors, _ = read_all(path)
    assert tensors["byte"].tolist() == [7]
    assert tensors["wide"].tolist() == [1.5, -2.0]


def test_is_a_mapping_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2, dtype=torch.int8), "z": torch.ones(3)}, path)
    with SafetensorsReader(path) as tensors:
        assert list(tensors) == ["z", "a"]
        assert len(tensors) == 2
        assert "a" in tensors
        assert "b" not in tensors
        assert tensors.header.tensors["z"].shape == (3,)
        with pytest.raises(KeyError):
            tensors["b"]
        assert tensors["a"] is not tensors["a"]


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with SafetensorsReader(path) as tensors:
        pass
    tensors.close()
    with pytest.raises(ValueError, match="closed"):
        tensors["a"]


def test_overwriting_the_file_changes_no_loaded_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(5000.0)}, path)
    tensors, _ = read_all(path)
    with path.open("r+b") as handle:
        handle.write(b"\xff" * path.stat().st_size)
    with path.open("r+b") as handle:
        handle.truncate(0)
    assert torch.equal(tensors["a"], torch.arange(5000.0))


@pytest.mark.usefixtures("each_way")
def test_a_file_that_shrinks_underneath_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(5000.0)}, path)
    with SafetensorsReader(path) as tensors:
        os.truncate(path, 3000)
        with pytest.raises(FileFormatError, match=r"'x\.safetensors': .* inside tensor 'a'.*chang"):
            tensors["a"]


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The system hands out 2 GB at most in one call; here it hands out 7 bytes.
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(50.0)}, path)
    monkeypatch.setattr(reader, "_preadv", lambda fd, buffers, place: os.preadv(fd, [buffers[0][:7]], place))
    assert torch.equal(read_all(path)[0]["a"], torch.arange(50.0))


def test_tensors_made_in_inference_mode_can_be_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with torch.inference_mode():
        tensors, _ = read_all(path)
    assert not tensors["a"].is_inference()
    tensors["a"].requires_grad_().sum().backward()


def test_read_into_fills_the_given_buffer(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "s": torch.tensor(3.0)}, path)
    with SafetensorsReader(path) as tensors:
        out = torch.empty(2, 3)
        tensors.read_into("a", out)
        assert torch.equal(out, torch.arange(6.0).reshape(2, 3))
        for wrong in (torch.empty(3, 2), torch.empty(3, 2).t(), torch.empty(2, 3).half()):
            with pytest.raises(ValueError, match="contiguous CPU tensor"):
                tensors.read_into("a", wrong)


@pytest.mark.usefixtures("each_way")
def test_threads_do_not_mix_up_their_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({str(i): torch.full((40_000,), i, dtype=torch.int32) for i in range(16)}, path)
    start = threading.Barrier(8)

    def read(first: int) -> bool:
        start.wait()
        names = [str((first + step) % 16) for step in range(16)]
        return all(bool((tensors[name] == int(name)).all()) for name in names)

    with SafetensorsReader(path) as tensors, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_closing_waits_for_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0)}, path)
    reading, go_on = threading.Event(), threading.Event()

    def slow(handle: FileIO, target: memoryview, place: int) -> int:
        reading.set()
        assert go_on.wait(10)
        handle.seek(place)
        return handle.readinto(target)

    monkeypatch.setattr(reader, "_read_at", slow)
    with ThreadPoolExecutor(2) as pool:
        tensors = SafetensorsReader(path)
        read = pool.submit(lambda: tensors["a"])
        assert reading.wait(10)
        closed = pool.submit(tensors.close)
        with pytest.raises(TimeoutError):
            closed.result(0.1)
        go_on.set()
        assert torch.equal(read.result(10), torch.arange(6.0))
        closed.result(10)
    with pytest.raises(ValueError, match="closed"):
        tensors["a"]


def test_a_lying_header_costs_no_memory(tmp_path: Path) -> None:
    size = 2**40
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 100)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"promises 1\.1 TB but has"):
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_tensor_larger_than_the_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3)}, path)

    def refuse(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(LycorisError, match="not enough memory for tensor 'a' of 12 bytes"):
        read_all(path)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    plan=st.dictionaries(
        TEXTS,
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    ),
    metadata=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_reads_any_official_file(
    tmp_path: Path,
    plan: dict[str, tuple[torch.dtype, list[int]]],
    metadata: dict[str, str],
) -> None:
    tensors = {name: random_bytes(dtype, tuple(shape)) for name, (dtype, shape) in plan.items()}
    path = tmp_path / "x.safetensors"
    # Release 0.8.0 writes broken JSON for no tensors with an empty metadata table.
    save_file(tensors, path, metadata or None)
    got, got_metadata = read_all(path)
    assert got_metadata == metadata
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(got[name], tensor)
