"""The tensors that an adapter set holds, by key, and the hash that tells it from every other."""

from __future__ import annotations

import hashlib

from torch import Tensor

from ..formats import dialect_of
from ..io import tensor_bytes
from .adapter_set import AdapterSet
from .bundles import embedding_tensors
from .peft_form import WITHOUT_ALPHA, as_peft_stores


def to_tensors(adapter_set: AdapterSet) -> dict[str, Tensor]:
    """{key: tensor} as a file holds them: the set's own layer names, in their dialect; the rest untouched."""
    layers: dict[str, Tensor] = {}
    for layer, adapter in adapter_set.items():
        dialect = dialect_of(layer)
        stored = as_peft_stores(adapter) if dialect.name in WITHOUT_ALPHA else adapter
        layers.update((dialect.render(layer, name), value) for name, value in stored.to_tensors().items())
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
