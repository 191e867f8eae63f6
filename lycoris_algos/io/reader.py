"""Reads tensors of a safetensors file one at a time, into memory that belongs to the caller.

Nothing is memory-mapped: a mapped file that somebody overwrites changes tensors that are already in
use, or kills the process, and Windows keeps it locked. So every tensor is read to its end by
position into fresh memory, and after ``close`` nothing depends on the file any more.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import FileFormatError, LycorisError
from ..text import human_size, quoted
from ._copy import copy_bytes
from ._paths import naming_file, open_regular, size_of
from .header import Header, TensorInfo, parse_header

# Where the system has them, positional reads leave the handle's own position alone, which a forked
# process shares with its parent.
_preadv: Callable[[int, list[memoryview], int], int] | None = getattr(os, "preadv", None)


class SafetensorsReader(Mapping[str, Tensor]):
    """The tensors of one file by name, in the order of the file; each access reads from the disk.

    ``reader[name]`` answers a fresh, contiguous CPU tensor of the file's dtype and shape; nothing
    is cached. Reads from several threads are safe. Use it as a context manager, or call ``close``.

    Raises FileFormatError for a file that is wrong or unreadable (naming it), KeyError for a name
    that it does not hold, ValueError after ``close``.
    """

    header: Header

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._idle = threading.Condition()
        self._users = 0
        require_little_endian()
        with naming_file(self.path):
            handle = open_regular(self.path)
            try:
                self.header = parse_header(handle, size_of(handle))
            except BaseException:
                handle.close()
                raise
        self._handle = handle
        self._order = tuple(self.header.tensors)
        self._places = {name: place for place, name in enumerate(self._order)}

    @property
    def metadata(self) -> dict[str, str]:
        """The texts that the file carries besides its tensors."""
        return self.header.metadata

    def __getitem__(self, name: str) -> Tensor:
        info = self.header.tensors[name]
        with naming_file(self.path), _trainable(), self._open() as handle:
            tensor = _allocate(info)
            _fill(handle, info, tensor)
        return tensor

    def __contains__(self, name: object) -> bool:
        # Mapping would answer by reading the tensor.
        return name in self.header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read_into(self, name: str, out: Tensor) -> None:
        """Reads one tensor into ``out``, a contiguous CPU tensor of its dtype and shape.

        For callers that reuse a (pinned) buffer. Raises as ``reader[name]`` does, and ValueError if
        ``out`` does not fit.
        """
        info = self.header.tensors[name]
        fits = out.dtype == info.dtype and tuple(out.shape) == info.shape
        if not fits or not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError(f"out must be a contiguous CPU tensor of {info.dtype} and shape {info.shape}")
        with naming_file(self.path), self._open() as handle:
            _fill(handle, info, out)

    def read_bytes(self, position: int, count: int) -> bytes:
        """``count`` bytes of the file from ``position`` on; FileFormatError if it has become shorter."""
        data = bytearray(count)
        with self._open() as handle, naming_file(self.path):
            _read_exactly(handle, memoryview(data), position)
        return bytes(data)

    def names(self, first: str, last: str) -> tuple[str, ...]:
        """The tensors from ``first`` to ``last``, in the order of the file."""
        return self._order[self._places[first] : self._places[last] + 1]

    def copy_to(self, first: str, last: str, target: FileIO) -> None:
        """Appends the bytes of the tensors ``first`` to ``last``, in the order of the file, to ``target``.

        Raises FileFormatError if the file has become shorter, OSError if ``target`` refuses.
        """
        start, end = self.header.tensors[first].start, self.header.tensors[last].end
        with self._open() as handle:
            done = copy_bytes(handle, start, end - start, target, lambda *at: _read_at(handle, *at))
        if done < end - start:
            with naming_file(self.path):
                raise FileFormatError("the file became shorter while it was read: try again")

    def close(self) -> None:
        """Closes the file, when other threads have read what they began to. May be called twice."""
        with self._idle:
            self._idle.wait_for(lambda: not self._users)
            self._handle.close()

    @contextmanager
    def _open(self) -> Iterator[FileIO]:
        """The handle, which nobody closes meanwhile: its number could be another file's then."""
        with self._idle:
            self._users += 1
        try:
            yield self._handle
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def all(self) -> dict[str, Tensor]:
        """Every tensor, in the order of the file. Raises as ``reader[name]`` does."""
        tensors: dict[str, Tensor] = {}
        with naming_file(self.path), _trainable(), self._open() as handle:
            for info in self.header.tensors.values():
                tensors[info.name] = tensor = _allocate(info)
                _fill(handle, info, tensor)
        return tensors


def read_all(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (in the order of the file) and the metadata; the file is closed again.

    Raises FileFormatError, naming the file.
    """
    with SafetensorsReader(path) as reader:
        return reader.all(), dict(reader.metadata)


def require_little_endian() -> None:
    """LycorisError on the rare computers whose byte order is not that of the format."""
    if sys.byteorder != "little":
        raise LycorisError("safetensors files cannot be used on this computer (big-endian)")


def _trainable() -> torch.inference_mode:
    """ComfyUI calls nodes in inference mode; tensors made there could never be trained on later."""
    return torch.inference_mode(False)


def _fill(handle: FileIO, info: TensorInfo, tensor: Tensor) -> None:
    if info.nbytes:
        target = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
        _read_exactly(handle, target, info.start, info.name)


def _allocate(info: TensorInfo) -> Tensor:
    try:
        return torch.empty(info.shape, dtype=info.dtype, device="cpu")
    except (RuntimeError, MemoryError) as error:
        raise LycorisError(
            f"not enough memory for tensor {quoted(info.name)} of {human_size(info.nbytes)}"
        ) from error


def _read_exactly(handle: FileIO, target: memoryview, position: int, name: str | None = None) -> None:
    done = 0
    while done < len(target):
        count = _read_at(handle, target[done:], position + done)
        if not count:
            where = "too early" if name is None else f"inside tensor {quoted(name)}"
            raise FileFormatError(
                f"the file ended {where}: it was changed while it was being read, load it again"
            )
        done += count


def _read_at(handle: FileIO, target: memoryview, position: int) -> int:
    """Reads at most ``len(target)`` bytes at ``position``; answers how many, 0 at the end."""
    if _preadv is not None:
        return _preadv(handle.fileno(), [target], position)
    with _SEEKING:  # one thread at a time: the position belongs to the handle
        handle.seek(position)
        return handle.readinto(target) or 0


_SEEKING = threading.Lock()
