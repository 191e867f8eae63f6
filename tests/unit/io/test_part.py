"""How a file gets its name: hidden until it is whole, never over another one, no part left for long."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from processes import run_python
from safetensors.torch import load_file

from lycoris_algos.io import SafetensorsWriter, _flush, _part, save_tensors

ROOT = Path(__file__).parents[3]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- names -------------------------------------------------------------------------------------


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    wanted = tmp_path / "my.lora.safetensors"
    wanted.write_bytes(b"precious")
    paths = [save_tensors(wanted, {"a": torch.full((1,), float(i))}) for i in range(3)]
    assert [path.name for path in paths] == [
        "my.lora_00002.safetensors",
        "my.lora_00003.safetensors",
        "my.lora_00004.safetensors",
    ]
    assert wanted.read_bytes() == b"precious"
    assert [load_file(path)["a"].item() for path in paths] == [0, 1, 2]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    wanted = tmp_path / "x.safetensors"
    with SafetensorsWriter(wanted, {"a": (torch.float32, ())}) as out:
        out.write("a", torch.tensor(1.0))
        wanted.write_bytes(b"precious")
    assert out.path.name == "x_00002.safetensors"
    assert wanted.read_bytes() == b"precious"


def test_a_broken_link_is_not_overwritten(tmp_path: Path) -> None:
    wanted = tmp_path / "x.safetensors"
    wanted.symlink_to(tmp_path / "elsewhere")
    assert save_tensors(wanted, {}).name == "x_00002.safetensors"
    assert not (tmp_path / "elsewhere").exists()


def refuse_links(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def test_without_hard_links_nothing_is_overwritten_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    wanted = tmp_path / "x.safetensors"
    wanted.write_bytes(b"precious")
    assert save_tensors(wanted, {"a": torch.ones(1)}).name == "x_00002.safetensors"
    assert save_tensors(wanted, {"a": torch.ones(1)}).name == "x_00003.safetensors"
    assert wanted.read_bytes() == b"precious"
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("links", [True, False])
def test_threads_that_want_one_name_get_one_each(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)
        exists = os.path.lexists

        def exists_slowly(path: str) -> bool:
            answer = exists(path)
            time.sleep(0.005)  # between the look and the rename another thread gets its chance
            return answer

        monkeypatch.setattr(os.path, "lexists", exists_slowly)
    start = threading.Barrier(8)

    def work(number: int) -> tuple[int, Path]:
        start.wait()
        tensor = torch.full((1000,), number)
        return number, save_tensors(tmp_path / "x.safetensors", {"a": tensor})

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert len({path for _, path in results}) == 8
    assert len(names(tmp_path)) == 8
    for number, path in results:
        assert bool((load_file(path)["a"] == number).all())


# --- parts -------------------------------------------------------------------------------------

STUCK = """
    import sys, time, torch
    from pathlib import Path
    from lycoris_algos.io import SafetensorsWriter
    plan = {"a": (torch.float32, (1000,)), "b": (torch.float32, (1000,))}
    with SafetensorsWriter(Path("x.safetensors"), plan) as out:
        out.write("a", torch.ones(1000))
        print("half", flush=True)
        time.sleep(600)
    """


@posix_only
def test_a_killed_writer_leaves_no_model_and_its_part_is_removed(tmp_path: Path) -> None:
    process = run_python(tmp_path, STUCK)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "half\n"
        part = f".x.safetensors.{process.pid}.part"
        assert names(tmp_path) == [part]
        # While its writer lives the part is safe from us,
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
        assert names(tmp_path) == [part, "x.safetensors"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert names(tmp_path) == [part, "x.safetensors"]
    # and the next write in this folder removes it, whatever its name.
    save_tensors(tmp_path / "y.safetensors", {})
    assert names(tmp_path) == ["x.safetensors", "y.safetensors"]


def test_a_part_of_our_own_process_number_is_abandoned_or_not(tmp_path: Path) -> None:
    # In a container every start has the same number, so the number must not protect a part …
    part = tmp_path / f".x.safetensors.{os.getpid()}.part"
    part.write_bytes(b"left by the start before this one")
    save_tensors(tmp_path / "x.safetensors", {})
    assert names(tmp_path) == ["x.safetensors"]
    # … nor condemn it: two writers of this process.
    with SafetensorsWriter(tmp_path / "x.safetensors", {"a": (torch.float32, ())}) as out:
        save_tensors(tmp_path / "x.safetensors", {})
        out.write("a", torch.tensor(1.0))
    assert out.path.name == "x_00003.safetensors"
    assert load_file(out.path)["a"].item() == 1


@posix_only
def test_a_part_that_is_lost_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = _part._lock
    lost: list[str] = []

    def lose_the_first(handle: io.FileIO) -> None:
        if not lost:
            lost.extend(names(tmp_path))
            (tmp_path / lost[0]).unlink()  # as another writer's cleaning would
        lock(handle)

    monkeypatch.setattr(_part, "_lock", lose_the_first)
    path = save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    assert len(lost) == 1
    assert load_file(path)["a"].item() == 1


@posix_only
def test_the_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, link = os.fsync, os.link

    def record_sync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def record_link(source: Path, target: Path) -> None:
        calls.append("name")
        link(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "link", record_link)
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    assert calls == ["file", "name", "folder"]


def test_the_part_of_another_name_is_safe_while_its_writer_lives(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x.safetensors", {"a": (torch.float32, ())}) as out:
        save_tensors(tmp_path / "y.safetensors", {})
        out.write("a", torch.tensor(1.0))
    assert names(tmp_path) == ["x.safetensors", "y.safetensors"]


def test_only_our_own_parts_are_removed(tmp_path: Path) -> None:
    strangers = [
        ".12.part",
        ".video.mp4.12.part",
        ".x.safetensors.aria2.part",
        ".x.safetensors.12.part.safetensors",
        ".x.safetensors.notes.part",
        ".xxsafetensors.12.part",
        "x.safetensors.12.part",
    ]
    ours = [".x.safetensors.12.part", ".other name.safetensors.7-3.part", ".y.sft.1.part"]
    for name in (*strangers, *ours):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, 0))  # without locks only age tells
    save_tensors(tmp_path / "x.safetensors", {})
    assert names(tmp_path) == sorted([*strangers, "x.safetensors"])


@posix_only
def test_where_locks_do_not_work_only_old_parts_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(_part.fcntl, "flock", refuse)
    for name, age in ((".x.safetensors.1.part", 0), (".x.safetensors.2.part", 2 * 24 * 3600)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    save_tensors(tmp_path / "x.safetensors", {})
    assert names(tmp_path) == [".x.safetensors.1.part", "x.safetensors"]


def test_a_large_file_goes_to_the_disk_while_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = threading.Event()
    monkeypatch.setattr(_part, "_LARGE", 10)
    monkeypatch.setattr(_flush, "_PAUSE_S", 0.001)
    monkeypatch.setattr(_flush, "_fdatasync", lambda descriptor: flushed.set())
    part = _part.PartFile(tmp_path / "x.bin")
    part.write(memoryview(b"123456789"))
    assert not flushed.wait(0.05)
    part.write(memoryview(b"0"))
    assert flushed.wait(5)
    assert part.publish().read_bytes() == b"1234567890"


def test_an_error_of_the_disk_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reports it once, to whoever asks first."""
    failed = threading.Event()

    def fail(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(_part, "_LARGE", 1)
    monkeypatch.setattr(_flush, "_PAUSE_S", 0.001)
    monkeypatch.setattr(_flush, "_fdatasync", fail)
    part = _part.PartFile(tmp_path / "x.bin")
    part.write(memoryview(b"123"))
    assert failed.wait(5)
    with pytest.raises(OSError, match="broken"):
        part.publish()
    part.discard()
    assert list(tmp_path.iterdir()) == []
