"""The hash that identifies a model file, for the recipes of files that are made with it."""

from __future__ import annotations

import hashlib
from typing import Any

from ..io import SafetensorsReader

# So many samples of so many bytes, evenly spread.
_SAMPLES, _SAMPLE = 64, 1 << 16


def model_record(reader: SafetensorsReader, name: str) -> dict[str, Any]:
    """The model file that ``reader`` reads, called ``name``: its size, and the hash of samples of it."""
    return {"file": name, "bytes": reader.header.file_size, "sampled_sha256": sampled_hash(reader)}


def sampled_hash(reader: SafetensorsReader) -> str:
    """sha256 over the file's header and samples spread evenly over all of it.

    A file of gigabytes is told from every other model by it, for the price of four megabytes.
    """
    digest = hashlib.sha256()
    for name, info in reader.header.tensors.items():
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0{info.start}\0".encode())
    start, size = reader.header.data_start, reader.header.file_size
    step = max((size - start) // _SAMPLES, _SAMPLE)
    for position in range(start, size, step):
        digest.update(reader.read_bytes(position, min(_SAMPLE, size - position)))
    return digest.hexdigest()
