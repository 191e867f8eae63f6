"""Rounding to a dtype, and how close is close enough (the package's docstring says why)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ._registry import to_numpy

# dtype: (bits of the fraction, exponent of the smallest normal number)
_FORMATS = {
    torch.float32: (23, -126),
    torch.float16: (10, -14),
    torch.bfloat16: (7, -126),
    torch.float8_e4m3fn: (3, -6),
    torch.float8_e5m2: (2, -14),
}


def ulp(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The distance of neighbouring numbers of ``dtype`` around each of ``values``."""
    if dtype == torch.float64:
        return np.spacing(np.abs(values))
    bits, smallest = _FORMATS[dtype]
    _, exponent = np.frexp(np.abs(values))  # value = f·2^exponent, ½ ≤ f < 1
    return np.exp2(np.maximum(np.where(values == 0, smallest, exponent - 1), smallest) - bits)


def round_once(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """float64 ``values`` to the nearest number of ``dtype``, ties to even, as float64.

    PyTorch goes from float64 to bfloat16 and float8 through float32, which rounds twice; this does not.
    """
    if dtype == torch.float64:
        return values
    unit = ulp(values, dtype)
    return np.rint(values / unit) * unit


# ---- comparing ----------------------------------------------------------------------------------------


class Tolerances(Protocol):
    """What a sample says about its own error (samples.Case)."""

    @property
    def tol32(self) -> float: ...
    @property
    def tol64(self) -> float: ...


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit: also NaN to itself, and +0 not to -0."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def tolerance(case: Tolerances, dtype: torch.dtype, weight: np.ndarray, change: np.ndarray) -> np.ndarray:
    """τ of this module's docstring, for ``change`` = m·ΔW."""
    tol, unit = (case.tol64, 2.0**-52) if dtype == torch.float64 else (case.tol32, 2.0**-23)
    return tol * np.abs(change).max(initial=0.0) + unit * (np.abs(weight) + np.abs(change))


def check_delta(got: Tensor, expected: np.ndarray, case: Tolerances, weight_dtype: torch.dtype) -> None:
    """``got`` is ``expected`` up to the error of what a weight of ``weight_dtype`` is computed in."""
    tol = case.tol64 if weight_dtype == torch.float64 else case.tol32
    error, most = np.abs(to_numpy(got) - expected).max(), np.abs(expected).max()
    assert error <= tol * most, f"ΔW is off by {error:.3g} of {most:.3g} for a weight in {weight_dtype}"


def check_rounded_once(got: Tensor, exact: np.ndarray, tau: np.ndarray) -> None:
    """``got`` is ``exact`` rounded once to its dtype, as far as an error τ before that allows."""
    values, nearest = to_numpy(got), round_once(exact, got.dtype)
    allowed = np.abs(nearest - exact) + 2 * tau
    worst = np.abs(values - exact) - allowed
    assert (worst <= 0).all(), f"off by {worst.max():.3g} more than one rounding to {got.dtype}"
    if got.dtype not in (torch.float32, torch.float64):
        step = ulp(exact, got.dtype)
        off = values != nearest
        assert (np.abs(values - nearest) <= step * 1.001 + 2 * tau)[off].all()
        clear = np.broadcast_to(tau <= step / 20, off.shape)
        assert (off & clear).sum() <= max(2, 0.01 * clear.sum()), "too many are not the nearest number"
