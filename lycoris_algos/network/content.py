"""The tensors that an adapter set holds, by key, and the hash that tells it from every other."""

from __future__ import annotations

import hashlib

from torch import Tensor

from ..formats import dialect_of
from ..io import tensor_bytes
from .adapter_set import AdapterSet
from .bundles import embedding_tensors


def to_tensors(adapter_set: AdapterSet) -> dict[str, Tensor]:
    """{key: tensor} as a file holds them: the set's own layer names, in their dialect; the rest untouched."""
    layers = {
        dialect_of(layer).render(layer, suffix): value
        for layer, adapter in adapter_set.items()
        for suffix, value in adapter.to_tensors().items()
    }
    return {**adapter_set.unread, **layers, **embedding_tensors(adapter_set.embeddings)}


def content_hash(adapter_set: AdapterSet) -> str:
    """sha256 over the names, dtypes, shapes and bytes of all tensors, in the order of their names.

    The same for a file and for a copy that was loaded and saved, whatever their metadata say.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(to_tensors(adapter_set).items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
