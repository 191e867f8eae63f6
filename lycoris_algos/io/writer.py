"""Writes safetensors files tensor by tensor, so that memory does not grow with the file.

Names, dtypes and shapes are known before the first number is, so the header is written first and is
final. Tensors then follow in ``order``, the order of the official library (wide dtypes first, then
by name), which keeps every tensor aligned and makes both writers' files equal byte for byte. The
file appears under its name only when it is complete; see ``_part``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import LycorisError
from ..text import listed, quoted
from ._dtypes import DTYPE_RANKS, name_of_dtype
from ._part import PartFile
from ._paths import naming_file
from ._space import explaining_writes, require_space
from .header import METADATA_KEY
from .reader import SafetensorsReader, require_little_endian
from .sniff import MAX_HEADER_BYTES

_ALIGNMENT = 8


class SafetensorsWriter:
    """Writes one safetensors file; use it as a context manager.

    ``tensors`` maps each name to its (dtype, shape). Inside the ``with`` block call ``write`` once
    for each name, in ``order`` (which may be given, to keep that of another file), or ``copy`` for
    several at once. Leaving the block publishes the file; leaving it by any exception
    removes every trace of it. An existing file is never replaced: ``path`` tells the name that was
    used, ``NAME_00002.safetensors`` and so on if the wanted one was taken.

    Raises LycorisError (naming the file) if the disk is full or refuses, FileFormatError for a
    dtype that safetensors lacks, ValueError for a name or text that cannot be stored.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]],
        metadata: Mapping[str, str] | None = None,
        order: Sequence[str] | None = None,
    ) -> None:
        require_little_endian()
        self._wanted = Path(path)
        self._plan = {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}
        with naming_file(self._wanted):
            self._sizes = {name: _nbytes(*entry) for name, entry in self._plan.items()}
            self.order = _file_order(self._plan) if order is None else tuple(order)
        self._places = {name: place for place, name in enumerate(self.order)}
        if len(self._places) < len(self.order) or self._places.keys() != self._plan.keys():
            raise ValueError("order must name every tensor once")
        self._starts = list(accumulate((self._sizes[name] for name in self.order), initial=0))
        self._header = _encode_header(self._plan, self._sizes, self.order, metadata or {})
        #: Size of its tensors, and of the finished file, in bytes.
        self.data_size = sum(self._sizes.values())
        self.file_size = len(self._header) + self.data_size
        self._part: PartFile | None = None
        self._written = 0
        self._final: Path | None = None

    @property
    def path(self) -> Path:
        """Where the finished file is; ValueError before the ``with`` block has ended well."""
        if self._final is None:
            raise ValueError("the file is not finished")
        return self._final

    def __enter__(self) -> SafetensorsWriter:
        if self._part is not None or self._final is not None:
            raise ValueError("a writer writes one file, once")
        with self._explaining():
            require_space(self._wanted.parent, self.file_size)
            try:
                self._part = PartFile(self._wanted)
            except ValueError as error:  # a zero byte, or half of a letter that UTF-16 splits
                raise LycorisError("this is not a possible file name: choose another one") from error
        self._append(memoryview(self._header))
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor (any device, any strides) of the dtype and shape that was announced.

        Raises LycorisError if the disk refuses, ValueError if ``name`` is not the next in ``order``
        or the tensor is not what was announced.
        """
        if self._written == len(self.order):
            raise ValueError(f"{quoted(name)} was not announced, or is written twice")
        expected = self.order[self._written]
        if name != expected:
            raise ValueError(f"write {quoted(expected)} next, not {quoted(name)}: see .order")
        dtype, shape = self._plan[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{quoted(name)} was announced as {dtype} {shape}, "
                f"but is {tensor.dtype} {tuple(tensor.shape)}"
            )
        self._append(tensor_bytes(tensor))
        self._written += 1

    def copy(self, source: SafetensorsReader, first: str, last: str) -> None:
        """Writes the tensors ``first`` to ``last`` of ``source`` byte for byte, by the kernel where it can.

        They must be the next ones in ``order``, in the same order as in ``source``. Raises as ``write``
        does, and FileFormatError if ``source`` cannot be read.
        """
        names = source.names(first, last)
        if tuple(names) != self.order[self._written : self._written + len(names)]:
            raise ValueError(f"{quoted(first)} to {quoted(last)} are not the next in .order")
        for name in names:
            info = source.header.tensors[name]
            if self._plan[name] != (info.dtype, info.shape):
                raise ValueError(f"{quoted(name)} was announced as {self._plan[name]}, but is {info}")
        part = self._open_part()
        with self._cleaning_up():
            source.copy_to(first, last, part.handle)
            part.grown()
        self._written += len(names)

    def replace(self, name: str, tensor: Tensor) -> None:
        """Writes ``tensor`` over what was written for ``name`` before. Raises as ``write`` does."""
        index = self._places[name]
        if index >= self._written:
            raise ValueError(f"{quoted(name)} has not been written yet")
        if (tensor.dtype, tuple(tensor.shape)) != self._plan[name]:
            raise ValueError(f"{quoted(name)} was announced as {self._plan[name]}")
        position = len(self._header) + self._starts[index]
        part = self._open_part()
        with self._cleaning_up():
            part.write_at(position, tensor_bytes(tensor))

    @property
    def unpublished(self) -> Path:
        """The hidden file while it is being written, to be read back before it gets its name."""
        return self._open_part().path

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._part is None:  # a failed write has cleaned up already
            return
        try:
            if exc_type is None:
                self._publish(self._part)
        finally:
            self._discard()

    def _publish(self, part: PartFile) -> None:
        if self._written < len(self.order):
            missing = listed(self.order[self._written :], 3, quoted)
            raise ValueError(f"the file is not complete, the next to be written: {missing}")
        with self._explaining():
            self._final = part.publish()
        self._part = None

    def _append(self, data: memoryview) -> None:
        part = self._open_part()
        with self._cleaning_up():
            part.write(data)

    def _open_part(self) -> PartFile:
        if self._part is None:
            raise ValueError("the writer is not open: use it in a with block")
        return self._part

    @contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        try:
            with self._explaining():
                yield
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _explaining(self) -> AbstractContextManager[None]:
        return explaining_writes(self._wanted, self.file_size)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes ``tensors`` to a new safetensors file and answers its path.

    The path is ``path``, or the next free ``NAME_00002.safetensors`` … if that exists. Raises as
    SafetensorsWriter does.
    """
    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    writer = SafetensorsWriter(path, plan, metadata)
    with writer:
        for name in writer.order:
            writer.write(name, tensors[name])
    return writer.path


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    name_of_dtype(dtype)  # refuses a dtype that has no name in the format
    return math.prod(shape) * dtype.itemsize


def _file_order(plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[str, ...]:
    return tuple(sorted(plan, key=lambda name: (-DTYPE_RANKS[plan[name][0]], _encoded(name))))


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except (UnicodeEncodeError, AttributeError) as error:
        raise ValueError(f"safetensors files cannot hold the text {quoted(str(text))}") from error


def _encode_header(
    plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    sizes: Mapping[str, int],
    order: Sequence[str],
    metadata: Mapping[str, str],
) -> bytes:
    entries: dict[str, object] = {}
    if metadata:
        for key, value in metadata.items():
            _encoded(key)
            _encoded(value)
        entries[METADATA_KEY] = dict(sorted(metadata.items()))
    position = 0
    for name in order:
        if name == METADATA_KEY:
            raise ValueError(f"{quoted(name)} is no name for a tensor: the format uses it itself")
        dtype, shape = plan[name]
        end = position + sizes[name]
        entries[name] = {
            "dtype": name_of_dtype(dtype),
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text):,} bytes is more than the format allows")
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's numbers in the order of the file; a copy only where device or strides ask it."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    flat = plain.as_strided((plain.numel(),), (1,))  # a single number is contiguous with any stride
    return flat.view(torch.uint8).numpy().data
