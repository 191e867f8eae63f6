"""A file that has not been written yet, in pieces that can each be damaged on their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPES = tuple(_DTYPES)

Entries = list[tuple[str, Any]]


@dataclass(eq=False)
class Draft:
    """``tensors`` may hold a name twice. ``metadata`` are texts, until a mutation knows better.

    ``beside`` is PEFT's adapter_config.json. ``header`` and ``bytes`` are done while it is written: to the
    entries of a safetensors header, and to the bytes of the whole file.
    """

    title: str
    tensors: list[tuple[str, Tensor]]
    metadata: dict[str, Any] = field(default_factory=dict)
    beside: str | None = None
    torch_file: bool = False
    header: list[Callable[[Entries], None]] = field(default_factory=list)
    bytes: list[Callable[[bytearray], None]] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.title

    def copy(self) -> Draft:
        """One that can be changed; its tensors are shared, and to be replaced only."""
        return replace(
            self,
            tensors=list(self.tensors),
            metadata=dict(self.metadata),
            header=list(self.header),
            bytes=list(self.bytes),
        )

    def write(self, folder: Path) -> Path:
        """The file in ``folder``, with what lies beside it."""
        name = "file" if self.beside is None else "adapter_model"
        path = folder / f"{name}{'.ckpt' if self.torch_file else '.safetensors'}"
        if self.beside is not None:
            (folder / "adapter_config.json").write_bytes(self.beside.encode("utf-8", "surrogatepass"))
        if self.torch_file:
            torch.save({**self.metadata, **dict(self.tensors)}, path)
            raw = bytearray(path.read_bytes()) if self.bytes else None
        else:
            raw = self._safetensors()
        for damage in self.bytes if raw is not None else ():
            damage(raw)
        if raw is not None:
            path.write_bytes(raw)
        return path

    def _safetensors(self) -> bytearray:
        entries: Entries = [("__metadata__", self.metadata)] if self.metadata else []
        data = bytearray()
        for name, tensor in self.tensors:
            own = (
                tensor.clone(memory_format=torch.contiguous_format)
                .reshape(-1)
                .view(torch.uint8)
                .numpy()
                .tobytes()
            )
            place = [len(data), len(data) + len(own)]
            entries.append(
                (name, {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place})
            )
            data += own
        for damage in self.header:
            damage(entries)
        text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in entries)
        head = f"{{{text}}}".encode()
        return bytearray(len(head).to_bytes(8, "little") + head + data)
