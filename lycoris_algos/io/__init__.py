"""Bytes of weights files: read, checked, written. Knows nothing about adapters."""

from __future__ import annotations

from .files import read_tensors
from .header import Header, TensorInfo, parse_header, read_header
from .metadata import base_model, facts, network_args, title, trigger_words
from .reader import SafetensorsReader, read_all
from .torch_file import read_torch_file
from .writer import SafetensorsWriter, save_tensors, tensor_bytes

__all__ = [
    "Header",
    "SafetensorsReader",
    "SafetensorsWriter",
    "TensorInfo",
    "base_model",
    "facts",
    "network_args",
    "parse_header",
    "read_all",
    "read_header",
    "read_tensors",
    "read_torch_file",
    "save_tensors",
    "tensor_bytes",
    "title",
    "trigger_words",
]
