"""Writes a file or a folder atomically: it appears whole or not at all, and never replaces another one.

The bytes go to a hidden ``.NAME.PID.part`` beside the wanted name, which no program lists as a
model. When it is complete and on the disk it gets its real name by a hard link, which fails if the
name is taken, so there is no moment at which an existing file could be lost or a half-written one
be seen. A folder is hidden the same way, as ``.NAME.folder.PID.part``, and renamed.

A program that is killed leaves its part behind. Whether a part is still in use is told by a lock
that the system drops with its owner, not by the process number: numbers are reused (in a container
every start has the same one) and mean nothing to another computer that shares the folder.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from ..errors import LycorisError
from ._flush import Flusher

if sys.platform != "win32":
    import fcntl

# Where locks do not work, a part that nobody has touched for so long is taken for abandoned.
_ABANDONED_AFTER_S = 24 * 3600
_MAX_COUNTER = 99_999
# The name that is wanted; the number of the writer.
_PART = re.compile(r"\.(.+)\.\d+(?:-\d+)?\.part", re.DOTALL)
_SUFFIXES = (".safetensors", ".sft")
# What the name of a hidden folder has before the number of its writer.
_FOLDER = ".folder"
# Bytes of one call. Measured on ext4: calls of 64 MB take seven times as long for the same bytes.
_CALL = 1 << 20
# From so many bytes on, a file is flushed while it grows.
_LARGE = 64 << 20
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_LOCKS = (*_UNSUPPORTED, errno.ENOLCK, errno.EINVAL)
_NO_LINKS = (*_UNSUPPORTED, errno.EPERM, errno.EACCES, errno.EMLINK)


class PartFile:
    """One hidden file being written. Call ``publish`` or ``discard`` exactly once at the end."""

    def __init__(self, wanted: Path) -> None:
        """Creates the part for ``wanted``, after removing parts that killed writers left in its folder.

        Raises OSError.
        """
        self._wanted = wanted
        remove_abandoned_parts(wanted)
        self._path, self._handle = _create(wanted)
        self._flusher: Flusher | None = None

    def write(self, data: memoryview) -> None:
        """Appends ``data`` (bytes, contiguous). Raises OSError, ENOSPC among them."""
        done = 0
        while done < len(data):
            done += self._handle.write(data[done : done + _CALL])
        self.grown()

    def grown(self) -> None:
        """To be called after bytes were appended: a large file goes to the disk while it grows."""
        if self._flusher is None and self._handle.tell() >= _LARGE:
            self._flusher = Flusher(self._handle.fileno())

    def write_at(self, position: int, data: memoryview) -> None:
        """Writes ``data`` over what was written at ``position``. Raises OSError."""
        end = self._handle.seek(0, os.SEEK_CUR)
        self._handle.seek(position)
        self.write(data)
        self._handle.seek(end)

    @property
    def path(self) -> Path:
        """The hidden file itself, to be read back before it is published."""
        return self._path

    @property
    def handle(self) -> FileIO:
        """The open file, for system calls that append to it."""
        return self._handle

    def publish(self) -> Path:
        """Makes the part a real file under the wanted name, or the next free one; answers its path.

        Raises OSError; then the part is still there, to be discarded.
        """
        if self._flusher is not None:
            self._flusher.finish()
        os.fsync(self._handle.fileno())
        if sys.platform == "win32":
            self._handle.close()  # an open file cannot be renamed there
        final = _give_free_name(self._path, self._wanted, _move_without_overwriting)
        with contextlib.suppress(OSError):
            self._handle.close()
        _sync_folder(final.parent)
        return final

    def discard(self) -> None:
        """Removes the part. Never raises: it runs while another error is on its way."""
        if self._flusher is not None:
            self._flusher.abandon()
        with contextlib.suppress(OSError):
            self._handle.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def remove_abandoned_parts(wanted: Path) -> None:
    """Removes parts beside ``wanted`` whose writers are gone. Best effort: trouble is no error.

    They are those for that name, and all for safetensors files and folders: nobody may ever write the name of
    a run that was killed again, and its part can be as large as a model.
    """
    with contextlib.suppress(OSError):
        for path in list(wanted.parent.iterdir()):
            match = _PART.fullmatch(path.name)
            if match is None or path.is_symlink():
                continue
            is_file = match[1] == wanted.name or match[1].endswith(_SUFFIXES)
            if (is_file and path.is_file()) or (match[1].endswith(_FOLDER) and path.is_dir()):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(path)


def free_names(wanted: Path) -> Iterator[Path]:
    """``NAME.suffix``, then ``NAME_00002.suffix``, ``NAME_00003.suffix`` …"""
    yield wanted
    for counter in range(2, _MAX_COUNTER + 1):
        yield wanted.with_name(f"{wanted.stem}_{counter:05d}{wanted.suffix}")
    raise LycorisError(f"no free name is left: {_MAX_COUNTER:,} files of this name exist")


class PartFolder:
    """One hidden folder being filled. Call ``publish`` or ``discard`` exactly once at the end."""

    def __init__(self, wanted: Path) -> None:
        """Creates the part for ``wanted`` as ``PartFile`` does. Raises OSError."""
        self._wanted = wanted
        remove_abandoned_parts(wanted)
        self.path, self._lock = _create_folder(wanted)

    def place(self, path: str) -> Path:
        """Where the file ``path`` (with slashes) of the folder is to be written now."""
        place = self.path.joinpath(*path.split("/"))
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, path: str, data: bytes) -> None:
        """Makes the file ``path`` of ``data``. Raises OSError."""
        with self.place(path).open("xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())

    def copy(self, source: Path, path: str) -> None:
        """Makes the file ``path`` a copy of ``source``. Raises OSError."""
        with source.open("rb") as own, self.place(path).open("xb") as handle:
            shutil.copyfileobj(own, handle, _CALL)
            handle.flush()
            os.fsync(handle.fileno())

    def publish(self) -> Path:
        """Makes it a folder under the wanted name, or the next free one; answers its path.

        What is in it must be on the disk. Raises OSError; then it is still there, to be discarded.
        """
        for folder in (self.path, *(path for path in self.path.iterdir() if path.is_dir())):
            _sync_folder(folder)
        final = _give_free_name(self.path, self._wanted, _rename_if_free)
        _unlock(self._lock)
        _sync_folder(final.parent)
        return final

    def discard(self) -> None:
        """Removes all of it. Never raises: it runs while another error is on its way."""
        shutil.rmtree(self.path, ignore_errors=True)
        _unlock(self._lock)


def _part_paths(wanted: Path, kind: str = "") -> Iterator[Path]:
    for attempt in itertools.count(1):
        # Two threads of one process may write the same name, so the number alone is not unique.
        number = str(os.getpid()) if attempt == 1 else f"{os.getpid()}-{attempt}"
        yield wanted.with_name(f".{wanted.name}{kind}.{number}.part")


def _create_folder(wanted: Path) -> tuple[Path, int | None]:
    """(the hidden folder, the lock on it)."""
    for path in _part_paths(wanted, _FOLDER):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        if sys.platform == "win32":
            return path, None
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another writer took it for abandoned before it was locked
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_dir():
            return path, lock
        os.close(lock)
    raise AssertionError("unreachable: _part_paths() has no end")


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _create(wanted: Path) -> tuple[Path, FileIO]:
    for path in _part_paths(wanted):
        try:
            handle = path.open("xb", buffering=0)
        except FileExistsError:
            continue
        try:
            _lock(handle)
        except OSError:
            handle.close()
            path.unlink()
            raise
        if _is_same_file(handle.fileno(), path):
            return path, handle
        # Another writer took it for abandoned in the instant before it was locked.
        handle.close()
    raise AssertionError("unreachable: _part_paths() has no end")


def _lock(handle: FileIO) -> None:
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_abandoned(path: Path) -> None:
    if sys.platform == "win32":
        # An open file cannot be removed there; the age protects one that is about to be renamed.
        if _is_old(path):
            _remove(path)
    else:
        descriptor = os.open(path, os.O_RDONLY)  # of a folder as well
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unused = True
        except OSError as error:
            unused = error.errno in _NO_LOCKS and _is_old(path)
        try:
            if unused and _is_same_file(descriptor, path):
                _remove(path)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S


def _give_free_name(part: Path, wanted: Path, move: Callable[[Path, Path], None]) -> Path:
    for candidate in free_names(wanted):
        try:
            move(part, candidate)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("unreachable: free_names() raises at its end")


def _move_without_overwriting(part: Path, candidate: Path) -> None:
    """Renames ``part``; FileExistsError if ``candidate`` exists, which then stays as it is."""
    if sys.platform == "win32":
        part.rename(candidate)  # refuses an existing target on this system
        return
    try:
        os.link(part, candidate)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
            raise
        _rename_if_free(part, candidate)
    else:
        # The new name is complete already; a part that cannot be removed now is removed later.
        with contextlib.suppress(OSError):
            part.unlink()


def _rename_if_free(part: Path, candidate: Path) -> None:
    # Folders and file systems without hard links (memory cards, some network shares) have no rename that
    # refuses. The lock on the folder keeps our own writers apart; against other programs there remains the
    # instant between the look and the rename.
    with _folder_lock(part.parent):
        if os.path.lexists(candidate):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(candidate))
        part.rename(candidate)


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
    else:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    # Makes the new name survive a power cut. Some systems cannot; the file itself is safe anyway.
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
