"""LyCORIS adapters, exactly as they were trained: load, apply, save. Needs torch, numpy and regex only.

    >>> import lycoris_algos
    >>> adapters = lycoris_algos.load("my_lokr.safetensors")
    >>> for name, layer in adapters.items():
    ...     layer.add_to_(weights[name], 0.7)

The library knows nothing of ComfyUI, never prints and never picks a device. What an algorithm does is in
its file under ``adapters``; the multiplier means the same for all of them: W(m) = W + m·ΔW(W).
"""

from .adapters import LayerAdapter, apply_
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
from .inspection import describe
from .network import AdapterSet, Unmatched, convert, from_tensors, load, save, with_rank

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
