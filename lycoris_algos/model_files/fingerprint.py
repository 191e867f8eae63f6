"""The hash that identifies a model, for the recipes of files that are made with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..io import SafetensorsReader

# So many samples of so many bytes, evenly spread.
_SAMPLES, _SAMPLE = 64, 1 << 16


def model_record(readers: Mapping[str, SafetensorsReader], name: str) -> dict[str, Any]:
    """The model called ``name`` in the files {path: reader}: its size, and the hash of samples of it."""
    hashes = {path: sampled_hash(reader) for path, reader in readers.items()}
    if len(hashes) == 1:
        (told,) = hashes.values()
    else:
        lines = (f"{path}\0{own}\n" for path, own in sorted(hashes.items()))
        told = hashlib.sha256("".join(lines).encode()).hexdigest()
    size = sum(reader.header.file_size for reader in readers.values())
    return {"file": name, "bytes": size, "sampled_sha256": told}


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
