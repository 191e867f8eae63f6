"""Reads any kind of weights file; its content decides which kind it is, not its suffix.

Files are renamed all the time (a .ckpt that is safetensors inside, a .safetensors that is a
pickle), so the content is looked at first. The suffix only counts when the content says nothing, to
choose the explanation.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ._paths import naming_file, open_regular
from .reader import read_all
from .sniff import SNIFF_BYTES, FileKind, kind_of
from .torch_file import read_torch_file

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors or PyTorch file.

    Tensors are on the CPU, contiguous, and share memory with nothing.

    Raises FileFormatError, naming the file, for anything that is missing, unreadable, damaged, of
    another kind, or that would need code to be run.
    """
    path = Path(path)
    return read_all(path) if is_safetensors(path) else read_torch_file(path)


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` is to be read as a safetensors file. Raises FileFormatError if it cannot be read."""
    with naming_file(path), open_regular(path) as handle:
        kind = kind_of(handle.read(SNIFF_BYTES))
    if kind is None:
        return path.suffix.lower() not in _TORCH_SUFFIXES
    return kind is FileKind.SAFETENSORS
