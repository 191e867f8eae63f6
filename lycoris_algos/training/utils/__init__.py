"""Small functions that scripts for LyCORIS use, by its names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


def str_bool(val: Any) -> bool:
    """Whether ``val`` is anything but "false", as arguments of a command line say it."""
    return str(val).lower() != "false"


def default(val: _T | None, d: _T) -> _T:
    """``val``, or ``d`` where that is None."""
    return d if val is None else val


def precalculate_safetensors_hashes(state_dict: Mapping[str, Tensor]) -> str:
    """The hash by which web UIs know a file ("0x…"): of the bytes of its tensors, one after the other."""
    digest = hashlib.sha256()
    for tensor in state_dict.values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"0x{digest.hexdigest()}"
