"""What differs between supported hosts (ComfyUI 0.3.75 and newer), above all how nodes are declared.

The V3 schema grows with the host: newer hosts accept more fields of a schema and more options of an input,
older ones raise TypeError at them. Both helpers drop what this host does not know, so that a node is
declared once, with everything that the newest host can show.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

#: The type of the wire between our nodes: a tuple of ``StackEntry``.
LYCORIS = io.Custom("LYCORIS")

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """An ``io.Schema`` of the fields that this host knows."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _SCHEMA_FIELDS})


def socket(kind: Any, id: str, **options: Any) -> Any:
    """An input of ``kind`` (``io.Float``, ``LYCORIS`` …) with the options that this host knows."""
    known = inspect.signature(kind.Input).parameters
    return kind.Input(id, **{name: value for name, value in options.items() if name in known})


def node_id(cls: Any) -> str | None:
    """The id of the node that runs, for a class that asks for it; None outside of a run."""
    return getattr(getattr(cls, "hidden", None), "unique_id", None)


def is_dynamic(patcher: Any) -> bool:
    """Whether ``patcher`` streams weights to the GPU as they are needed (dynamic VRAM of newer hosts)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def is_patched_late(module: Any, key: str) -> bool:
    """Whether ``module`` patches its parameter ``key`` itself, each time that it runs."""
    name = key.rpartition(".")[2]
    functions = [*getattr(module, f"{name}_function", ()), getattr(module, f"{name}_lowvram_function", None)]
    return any(getattr(function, "key", None) == key for function in functions)


def text_ui(text: str) -> dict[str, list[str]]:
    """What a node returns beside its outputs as ``ui``, so that web/js/report.js shows ``text`` on it."""
    return {"text": [text]}
