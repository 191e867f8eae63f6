"""LyCORIS adapters, exactly as they were trained: load, apply, save. Needs torch, numpy and regex only.

    >>> import lycoris_algos
    >>> adapters = lycoris_algos.load("my_lokr.safetensors")
    >>> for name, layer in adapters.items():
    ...     layer.add_to_(weights[name], 0.7)

The library knows nothing of ComfyUI, never prints and never picks a device. What an algorithm does is in
its file under ``adapters``; the multiplier means the same for all of them: W(m) = W + m·ΔW(W).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    AmbiguousAdapterError,
    BadValueError,
    CancelledError,
    FileFormatError,
    LycorisError,
    NeedsBaseError,
    NoMatchError,
    NoRankError,
    NoSpellingError,
    NotAnAdapterError,
    ShapeMismatchError,
    SiblingRowsError,
    UnknownAdapterError,
)

if TYPE_CHECKING:
    from .adapters import LayerAdapter, apply_
    from .inspection import describe
    from .network import AdapterSet, Unmatched, with_rank
    from .network.convert import convert
    from .network.load import from_tensors, load
    from .network.save import save

__version__ = "0.1.0"

__all__ = [
    "AdapterSet",
    "AmbiguousAdapterError",
    "BadValueError",
    "CancelledError",
    "FileFormatError",
    "LayerAdapter",
    "LycorisError",
    "NeedsBaseError",
    "NoMatchError",
    "NoRankError",
    "NoSpellingError",
    "NotAnAdapterError",
    "ShapeMismatchError",
    "SiblingRowsError",
    "UnknownAdapterError",
    "Unmatched",
    "apply_",
    "convert",
    "describe",
    "from_tensors",
    "load",
    "save",
    "with_rank",
]

# What needs PyTorch, whose import takes seconds, by the room that it is in: imported when it is asked for.
_LATER = {
    "adapters": ("LayerAdapter", "apply_"),
    "inspection": ("describe",),
    "network": ("AdapterSet", "Unmatched", "convert", "from_tensors", "load", "save", "with_rank"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        for room, names in _LATER.items():
            if name == room or name in names:
                inside = import_module(f".{room}", __name__)
                return inside if name == room else getattr(inside, name)
        raise AttributeError(f"module {__name__} has no attribute {name}")
