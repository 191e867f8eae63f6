"""Reads tensors out of PyTorch's own files (.pt, .pth, .ckpt, .bin) without running their code.

Such a file is a pickle, a small program that may call anything. Only ``torch.load`` with
``weights_only=True`` is used, which knows tensors and plain containers and refuses the rest. What
it hands out is still a stranger's work: containers may hold themselves, a tiny tensor may claim to
be repeated a billion times, an archive may be a zip bomb; each of those is refused here.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..text import human_size, quoted, single_line
from ._paths import naming_file, open_regular, size_of
from .header import METADATA_KEY
from .sniff import SNIFF_BYTES, FileKind, explain, kind_of

_MAX_DEPTH = 32
_CONVERT = "convert it to .safetensors with the program that made it"
_DAMAGED = "the file is damaged or was cut off: download it again"
# How PyTorch words the refusal of something that is not plain data.
_NEEDS_CODE = re.compile(
    r"Unsupported global|unsupported GLOBAL|Unsupported class|must be imported|"
    r"Can only (create|build)|Trying to (call|instantiate)|allowlisted",
)
_GLOBAL_NAME = re.compile(r"GLOBAL ([\w.]{1,100})")


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (contiguous, on the CPU, detached) and the plain values of a PyTorch file.

    A ``{"state_dict": …}`` is unwrapped. Nested tables are flattened, keys joined by dots. Texts
    and numbers beside the tensors at the top level become metadata, as texts. No two tensors share
    memory, even where they do in the file.

    Raises FileFormatError, naming the file, if it is damaged, holds no tensors, or needs code to be
    run.
    """
    path = Path(path)
    with naming_file(path), open_regular(path) as handle:
        first = handle.read(SNIFF_BYTES)
        kind = kind_of(first)
        if kind not in (FileKind.TORCH_ZIP, FileKind.TORCH_PICKLE):
            raise FileFormatError(_not_torch(first, kind))
        if kind is FileKind.TORCH_ZIP:
            _check_archive(handle)
        return _flatten(_load(handle), _budget(size_of(handle)))


def _not_torch(first: bytes, kind: FileKind | None) -> str:
    if kind is FileKind.SAFETENSORS:
        return "this is a safetensors file: give it the suffix .safetensors"
    return explain(first).replace("not a safetensors file", "not a PyTorch file")


def _check_archive(handle: BinaryIO) -> None:
    """Refuses zip files that PyTorch did not write, before PyTorch unpacks them."""
    file_size = size_of(handle)
    try:
        with zipfile.ZipFile(handle) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile answers hostile archives with many types of error
        raise FileFormatError(_DAMAGED) from error
    if not any(member.filename.endswith("data.pkl") for member in members):
        raise FileFormatError("this is a zip archive, not a PyTorch file: unpack it first")
    # PyTorch stores its records as they are, so anything larger inside than outside is a trick.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise FileFormatError("it is compressed, which PyTorch's own files never are: unpack it")
    if sum(member.file_size for member in members) > file_size:
        raise FileFormatError(f"its records hold more than the whole file: {_DAMAGED}")


def _load(handle: BinaryIO) -> object:
    handle.seek(0)
    try:
        # ComfyUI calls nodes in inference mode; tensors made there could never be trained on later.
        with torch.inference_mode(False):
            return torch.load(handle, map_location="cpu", weights_only=True)
    # Without the cause: it holds names of the file as they are, and a traceback goes to a terminal.
    except pickle.UnpicklingError as error:
        raise FileFormatError(_explain_refusal(str(error))) from None
    except Exception:  # a hostile pickle can make the loader raise anything
        raise FileFormatError(_DAMAGED) from None


def _explain_refusal(message: str) -> str:
    if not _NEEDS_CODE.search(message):
        return _DAMAGED
    match = _GLOBAL_NAME.search(message)
    example = f" ({single_line(match[1], 80)})" if match else ""
    return f"it holds Python objects{example}, which could run code: {_CONVERT}"


def _budget(file_size: int) -> int:
    # Tensors that share memory in the file are copied, so more can come out than is in it. Views
    # are free in a pickle: without a limit, a small file could fill the memory.
    return 4 * file_size + 64 * 2**20


def _flatten(loaded: object, budget: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not isinstance(loaded, Mapping):
        raise FileFormatError("it holds no table of named tensors, so nothing can be found in it")
    metadata = {
        _written(key): _written(value)
        for key, value in loaded.items()
        if isinstance(key, str) and (isinstance(value, (str, float)) or _is_short(value))
    }
    inner = loaded.get("state_dict")
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    total = 0
    for name, tensor in _leaves(inner if isinstance(inner, Mapping) else loaded, "", set(), 0):
        if name in tensors:
            raise FileFormatError(f"it holds two tensors called {quoted(name)}: {_CONVERT}")
        _check_plain(name, tensor)
        total += tensor.numel() * tensor.itemsize
        if total > budget:
            raise FileFormatError(
                f"its tensors repeat their data: {human_size(total)} and more would come out of a "
                f"much smaller file, so it is not trusted: {_CONVERT}"
            )
        tensors[name] = _owned(tensor, taken)
    if not tensors:
        raise FileFormatError("it holds no tensors")
    return tensors, metadata


def _written(value: object) -> str:
    """``value`` as a text that a file can hold: halves of letters that UTF-16 splits become "?"."""
    return str(value).encode("utf-8", "replace").decode()


def _is_short(value: object) -> bool:
    """Whether it is a whole number of a usual size; a pickle can hold one of a million digits."""
    return isinstance(value, int) and value.bit_length() <= 64


def _leaves(
    table: Mapping[object, object], prefix: str, seen: set[int], depth: int
) -> Iterator[tuple[str, Tensor]]:
    # A pickle can hold a table inside itself, or one table a thousand times in a thousand tables.
    if id(table) in seen or depth > _MAX_DEPTH:
        raise FileFormatError(f"its tables are nested in a way that has no end: {_CONVERT}")
    seen.add(id(table))
    for key, value in table.items():
        if isinstance(value, Tensor):
            yield prefix + _checked_key(key), value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{_checked_key(key)}.", seen, depth + 1)


def _checked_key(key: object) -> str:
    if not isinstance(key, (str, int)):
        raise FileFormatError(f"a tensor has no name but a {type(key).__name__}: {_CONVERT}")
    name = str(key)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FileFormatError(f"the name {quoted(name)} is no text: {_CONVERT}") from error
    return name


def _check_plain(name: str, tensor: Tensor) -> None:
    if name == METADATA_KEY:
        raise FileFormatError(f"{quoted(name)} is no name for a tensor: {_CONVERT}")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise FileFormatError(f"tensor {quoted(name)} is sparse, quantized or empty: {_CONVERT}")


def _owned(tensor: Tensor, taken: set[int]) -> Tensor:
    """``tensor`` contiguous, in memory of its own; ``taken`` holds the addresses given out."""
    with torch.inference_mode(False):
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage()
        shared = storage.data_ptr() in taken or storage.nbytes() != plain.numel() * plain.itemsize
        if shared:
            plain = plain.clone()
        taken.add(plain.untyped_storage().data_ptr())
        return plain
