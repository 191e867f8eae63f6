"""Writes an ``AdapterSet`` to a .safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch

from ..io import save_tensors
from .adapter_set import AdapterSet
from .content import to_tensors
from .convert import as_written, convert


def save(
    adapter_set: AdapterSet,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    dialect: str | None = None,
) -> Path:
    """Writes ``adapter_set`` as safetensors with its metadata, in its stored dtypes and dialect unless given.

    Layers in diffusers' and PEFT's names have their alpha in the factors, as those programs ask for.
    The file appears whole or not at all, and never over an existing one: the path that was written is
    returned, with a counter in its name if ``path`` was taken. Raises FileFormatError when the file
    cannot be written, and as ``convert`` does.
    """
    if dtype is not None or dialect is not None:
        adapter_set = convert(adapter_set, dtype=dtype, dialect=dialect)
    written = as_written(adapter_set)
    return save_tensors(Path(path), to_tensors(written), dict(written.metadata))
