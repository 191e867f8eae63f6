"""Bytes of weights files: read, checked, written. Knows nothing about adapters."""

from __future__ import annotations

from ._part import PartFolder
from ._space import explaining_writes, require_space
from .batches import free_together, gathered, name_and_step
from .files import is_safetensors, read_tensors
from .header import MAX_TENSORS, Header, TensorInfo, parse_header, read_header
from .metadata import base_model, facts, network_args, title, trigger_words
from .names import possible_name
from .presets import read_presets
from .reader import SafetensorsReader, read_all
from .shards import (
    ShardIndex,
    index_bytes,
    index_of_shard,
    is_first_shard,
    is_shard,
    read_index,
    variant_of_index,
)
from .torch_file import read_torch_file
from .writer import SafetensorsWriter, save_tensors, tensor_bytes

__all__ = [
    "MAX_TENSORS",
    "Header",
    "PartFolder",
    "SafetensorsReader",
    "SafetensorsWriter",
    "ShardIndex",
    "TensorInfo",
    "base_model",
    "explaining_writes",
    "facts",
    "free_together",
    "gathered",
    "index_bytes",
    "index_of_shard",
    "is_first_shard",
    "is_safetensors",
    "is_shard",
    "name_and_step",
    "network_args",
    "parse_header",
    "possible_name",
    "read_all",
    "read_header",
    "read_index",
    "read_presets",
    "read_tensors",
    "read_torch_file",
    "require_space",
    "save_tensors",
    "tensor_bytes",
    "title",
    "trigger_words",
    "variant_of_index",
]
