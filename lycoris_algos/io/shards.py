"""The index of a model that is stored in several safetensors files (shards): which of them holds what.

``NAME.safetensors.index.json`` lies beside ``NAME-00001-of-00003.safetensors`` and so on. It names files, and
it may be a stranger's: only plain names beside itself are taken, and the files have the last word about what
is in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FileFormatError
from ..text import Brief, human_size, quoted
from ._json import parse_table
from ._paths import naming_file, open_regular, size_of
from .header import MAX_TENSORS

_INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(?:\.(?P<variant>[\w-]+))?\.json", re.DOTALL)
_SHARD = re.compile(
    r"(?P<stem>.+?)(?:\.(?P<variant>\w+))?-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors", re.DOTALL
)
# A hundred times as many as the largest models have.
_MAX_SHARDS = 2_000
_MAX_BYTES = 64 << 20
_FORBIDDEN = frozenset("/\\:\0")
_DAMAGED = "download all files of the model again"


@dataclass(frozen=True, eq=False)
class ShardIndex(Brief):
    """An index: {tensor: file beside it}, and what else it says."""

    path: Path
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def files(self) -> tuple[str, ...]:
        """The shards, in the order of their names."""
        return tuple(sorted(set(self.weight_map.values())))

    def check(self, file: str, tensors: Collection[str]) -> None:
        """FileFormatError unless ``tensors`` are what the index says about ``file``."""
        for name in tensors:
            told = self.weight_map.get(name)
            if told is None:
                raise FileFormatError(
                    f"the shard {quoted(file)} holds {quoted(name)}, which its index does not "
                    f"name: {_DAMAGED}"
                )
            if told != file:
                raise FileFormatError(
                    f"the tensor {quoted(name)} is in {quoted(file)}, and the index says that it is in "
                    f"{quoted(told)}: {_DAMAGED}"
                )
        missing = next(
            (name for name, own in self.weight_map.items() if own == file and name not in tensors), ""
        )
        if missing:
            raise FileFormatError(f"the shard {quoted(file)} lacks {quoted(missing)}: {_DAMAGED}")


def variant_of_index(name: str) -> str | None:
    """The variant ("fp16", "" for none) of the index file called ``name``; None if it is no index."""
    match = _INDEX.fullmatch(name)
    return None if match is None else match["variant"] or ""


def is_shard(name: str) -> bool:
    """Whether the file ``name`` is called as one of several shards."""
    match = _SHARD.fullmatch(name)
    return match is not None and int(match["count"]) > 1


def is_first_shard(name: str) -> bool:
    """Whether it is the first of them."""
    match = _SHARD.fullmatch(name)
    return is_shard(name) and match is not None and int(match["number"]) == 1


def index_of_shard(path: Path) -> Path:
    """The index that the shard ``path`` belongs to. Raises FileFormatError if it is not there."""
    match = _SHARD.fullmatch(path.name)
    assert match is not None  # is_shard
    variant = f".{match['variant']}" if match["variant"] else ""
    names = (
        f"{match['stem']}.safetensors.index{variant}.json",
        f"{match['stem']}{variant}.safetensors.index.json",
    )
    for name in names:
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise FileFormatError(
        f"file {quoted(path.name)} is one of {int(match['count'])} shards of a model, and their index "
        f"{quoted(names[-1])} is not beside it: put all files of the model into one folder"
    )


def read_index(path: Path) -> ShardIndex:
    """The index at ``path``, every shard of which exists. Raises FileFormatError, naming the file."""
    with naming_file(path):
        with open_regular(path) as handle:
            size = size_of(handle)
            if size > _MAX_BYTES:
                raise FileFormatError(
                    f"an index of {human_size(size)} is larger than that of any model: it is not read"
                )
            raw = handle.readall()
        table = parse_table(raw, "the index", _DAMAGED)
        weight_map = _checked_map(table.get("weight_map"))
        index = ShardIndex(path, weight_map, _checked_metadata(table.get("metadata")))
        if len(index.files) > _MAX_SHARDS:
            raise FileFormatError(
                f"it names {len(index.files):,} files, and no model has more than {_MAX_SHARDS:,}"
            )
        for name in index.files:
            if not path.with_name(name).is_file():
                raise FileFormatError(f"its shard {quoted(name)} is not there: {_DAMAGED}")
    return index


def index_bytes(weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, Any]) -> bytes:
    """An index as the transformers library writes it; ``metadata`` is what a former one said."""
    table = {
        "metadata": {**metadata, "total_size": total_size},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def _checked_map(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise FileFormatError(f"the index has no 'weight_map' that says where tensors are: {_DAMAGED}")
    if len(value) > MAX_TENSORS:
        raise FileFormatError(
            f"it names {len(value):,} tensors, and no model has more than {MAX_TENSORS:,}: it is not read"
        )
    for name, file in value.items():
        if not isinstance(file, str):
            raise FileFormatError(f"the index says of {quoted(name)} no name of a file: {_DAMAGED}")
        if not _FORBIDDEN.isdisjoint(file) or not file.endswith(".safetensors"):
            raise FileFormatError(
                f"the index says that {quoted(name)} is in {quoted(file)}, which is no safetensors file "
                "beside it: nothing else is read"
            )
    return value


def _checked_metadata(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
