"""The number type that the maths runs in, and casting to it.

Decided once, here: everything is computed in float32 (float64 where the weight already is), whatever the
factors and the weight are stored as, and rounded once on the way back. Factors are cast, never products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._types import Factor

#: What files may be stored in, by the names that people choose from.
STORED_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8 e4m3": torch.float8_e4m3fn,
    "fp8 e5m2": torch.float8_e5m2,
}


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any of ``dtypes`` is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def to_compute(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``tensor`` on ``device`` in ``dtype``; the tensor itself when it is there already.

    The bytes travel in the stored dtype (half the traffic for fp16) and are cast on the target, except
    where the target cannot hold that dtype at all (float8 and float64 on Apple's MPS).
    """
    if tensor.device == device:
        return tensor.to(dtype)
    if device.type == "mps" and (tensor.element_size() == 1 or tensor.dtype == torch.float64):
        tensor = tensor.to(dtype)
    return tensor.to(device, non_blocking=True).to(dtype)


def times(tensor: Tensor, factor: Factor) -> Tensor:
    """``tensor``·``factor`` in its own dtype, computed in float32 (or float64) and rounded once."""
    return (tensor.to(compute_dtype(tensor.dtype)) * factor).to(tensor.dtype)


def common_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype of all of ``tensors``, or where they differ the one that is computed in."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else compute_dtype(*dtypes)


def added(one: Tensor, other: Tensor) -> Tensor:
    """``one`` + ``other``, computed in float32 (or float64): float8 has no sums."""
    dtype = compute_dtype(one.dtype, other.dtype)
    return one.to(dtype) + other.to(dtype)


def solving(tensor: Tensor) -> Tensor:
    """``tensor`` in the dtype that equations are solved in: float64, where its device has that."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
