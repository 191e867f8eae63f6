"""Reads and checks the header of a safetensors file.

A file says in its first bytes how long its header is; the header (JSON) says where each tensor
lies. All of it comes from strangers, so nothing is allocated by what it claims until the claims
agree with each other and with the size of the file: dtype x shape against the byte range, ranges
that follow one another without overlap or hole (as the official library demands), and an end that
is the end of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import FileFormatError
from ..text import Brief, human_size, quoted, single_line, size_pair
from ._dtypes import dtype_from_name
from ._json import parse_table
from ._paths import naming_file, open_regular, size_of
from .sniff import MAX_HEADER_BYTES, SNIFF_BYTES, FileKind, explain, kind_of

METADATA_KEY = "__metadata__"
_MAX_DIMENSIONS = 64
#: Ten times as many as the largest models have. A header of more takes longer than a person waits.
MAX_TENSORS = 2**16
_MAX_BYTES = 2**63 - 1
_DAMAGED = "the file is damaged: download it again"


@dataclass(frozen=True)
class TensorInfo(Brief):
    """Where one tensor lies: bytes ``start`` to ``end`` (exclusive) from the start of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header(Brief):
    """What a file holds. ``tensors`` is in the order of the file; sizes and offsets are bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_size: int


def read_header(path: Path) -> Header:
    """The checked header of the file at ``path``, without its tensors.

    Raises FileFormatError, with the name of the file, for every way in which a file can be wrong.
    """
    path = Path(path)
    with naming_file(path), open_regular(path) as handle:
        return parse_header(handle, size_of(handle))


def parse_header(handle: BinaryIO, file_size: int) -> Header:
    """The checked header of an open file of ``file_size`` bytes; the handle's position moves.

    Raises FileFormatError (without a file name: the caller knows it).
    """
    handle.seek(0)
    first = handle.read(SNIFF_BYTES)
    length = _header_length(first, file_size)
    handle.seek(8)
    raw = _read_exactly(handle, length)
    _check_count(raw.count(b'"data_offsets"'))  # as it is usually spelled, and before the work of reading it
    entries = parse_table(raw, "the header", _DAMAGED)
    metadata = _checked_metadata(entries.pop(METADATA_KEY, None))
    _check_count(len(entries))
    data_start = 8 + length
    infos = [_checked_entry(name, entry, data_start) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    _check_layout(infos, data_start, file_size)
    tensors = {info.name: info for info in infos}
    return Header(tensors, metadata, data_start, file_size)


def _header_length(first: bytes, file_size: int) -> int:
    if len(first) < 8:
        raise FileFormatError(_too_short(first) if first else explain(first))
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES and first[8:9] == b"{":
        raise FileFormatError(
            f"the header claims to be {human_size(length)} long, more than the "
            f"{human_size(MAX_HEADER_BYTES)} that are allowed: {_DAMAGED}"
        )
    # JSON may begin with blanks, although the usual writers never do that.
    blank_start = length <= MAX_HEADER_BYTES and first[8:9] in b" \t\r\n"
    if length < 2 or not (blank_start or kind_of(first) is FileKind.SAFETENSORS):
        raise FileFormatError(explain(first))
    if 8 + length > file_size:
        promised, there = size_pair(8 + length, file_size)
        raise FileFormatError(
            f"the file ends inside its header, which needs {promised}; it has {there}: "
            "the download was cut off, download it again"
        )
    return length


def _check_count(tensors: int) -> None:
    if tensors > MAX_TENSORS:
        raise FileFormatError(
            f"it holds {tensors:,} tensors, and no model has more than {MAX_TENSORS:,}: it is not read"
        )


def _too_short(first: bytes) -> str:
    return f"the file is only {human_size(len(first))} long, too short for a model file: download it again"


def _read_exactly(handle: BinaryIO, length: int) -> bytes:
    # A raw handle may answer with less than it was asked for.
    parts: list[bytes] = []
    missing = length
    while missing:
        part = handle.read(missing)
        if not part:
            raise FileFormatError("the file became shorter while it was read: try again")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _checked_metadata(entry: object) -> dict[str, str]:
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise FileFormatError(f"the metadata is not a table: {_DAMAGED}")
    for name, value in entry.items():
        if not isinstance(value, str):
            raise FileFormatError(
                f"the metadata value {quoted(name)} is not a text: safetensors allows texts only, "
                "save the file again with the program that made it"
            )
    return entry


def _checked_entry(name: str, entry: object, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(
            f"the header's entry for tensor {quoted(name)} lacks dtype, shape or data_offsets: {_DAMAGED}"
        )
    dtype = _checked_dtype(name, entry["dtype"])
    shape = _checked_shape(name, entry["shape"])
    start, end = _checked_offsets(name, entry["data_offsets"])
    needed = _byte_count(name, dtype, shape)
    if end - start != needed:
        raise FileFormatError(
            f"tensor {quoted(name)} of shape {list(shape)} and dtype {single_line(entry['dtype'])} needs "
            f"{needed:,} bytes, but its place in the file has {end - start:,}: {_DAMAGED}"
        )
    return TensorInfo(name, dtype, shape, data_start + start, data_start + end)


def _checked_dtype(name: str, value: object) -> torch.dtype:
    if not isinstance(value, str):
        raise FileFormatError(f"the dtype of tensor {quoted(name)} is not a text: {_DAMAGED}")
    try:
        return dtype_from_name(value)
    except FileFormatError as error:
        raise error.with_context(f"tensor {quoted(name)}") from None


def _checked_shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(_is_count(size) for size in value):
        raise FileFormatError(
            f"the shape of tensor {quoted(name)} is not a list of whole numbers: {_DAMAGED}"
        )
    if len(value) > _MAX_DIMENSIONS:
        raise FileFormatError(
            f"tensor {quoted(name)} has {len(value):,} dimensions, more than {_MAX_DIMENSIONS}: {_DAMAGED}"
        )
    return tuple(value)


def _checked_offsets(name: str, value: object) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(_is_count(offset) and offset <= _MAX_BYTES for offset in value)
    ):
        raise FileFormatError(f"the data_offsets of tensor {quoted(name)} are not two positions: {_DAMAGED}")
    start, end = value
    if start > end:
        raise FileFormatError(
            f"the data_offsets of tensor {quoted(name)} are reversed ({start:,} to {end:,}): {_DAMAGED}"
        )
    return start, end


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0  # 'true' is an int in Python as well, but no size


def _byte_count(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    # Zeros are left out here: [0, 2**62, 2**62] is empty, yet its strides overflow all the same.
    if math.prod(size for size in shape if size) * dtype.itemsize > _MAX_BYTES:
        raise FileFormatError(f"the shape of tensor {quoted(name)} is impossibly large: {_DAMAGED}")
    return math.prod(shape) * dtype.itemsize


def _check_layout(infos: list[TensorInfo], data_start: int, file_size: int) -> None:
    position = data_start
    for info in infos:
        if info.start < position:
            raise FileFormatError(f"tensor {quoted(info.name)} overlaps the tensor before it: {_DAMAGED}")
        if info.start > position:
            raise FileFormatError(
                f"there is a hole of {human_size(info.start - position)} before tensor "
                f"{quoted(info.name)}: {_DAMAGED}"
            )
        position = info.end
    if position > file_size:
        promised, there = size_pair(position, file_size)
        raise FileFormatError(
            f"the file promises {promised} but has {there}: the download was cut off, download it again"
        )
    if position < file_size:
        raise FileFormatError(f"{human_size(file_size - position)} follow after the last tensor: {_DAMAGED}")
