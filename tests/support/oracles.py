"""What every algorithm computes, written from its formula in numpy float64, and how close is close enough.

Nothing of the library is used here, not even its names for things: an oracle reads the tensors as a file
stores them, and works by loops, outer products and einsum. **A new algorithm** adds one decorated function:

    @oracle("ia3", "weight", "on_input")
    def _ia3(tensors, weight):
        return ...                      # ΔW for this W, in W's shape

``sees="sum"`` is for what comes last and acts on W plus everything before it (DoRA): it gets that sum as W.

Bounds. The library is compared with W + m·ΔW(W) in float64. It may be off by

    τ = tol·max|m·ΔW| + 2^-23·(|W| + |m·ΔW|)            (2^-52 where it computes in float64)

The first term is ΔW's own error in the compute dtype (1e-5 for float32: dozens of roundings of 6e-8 each, and
some cancellation between ranks; 1e-12 for float64), the second the rounding of the sum, half an ulp in each
of two steps. Stored in a narrower dtype, x̃ = round(x) with |x - exact| ≤ τ obeys
|x̃ - exact| ≤ |round(exact) - exact| + 2τ: it is the nearest number, or the other neighbour where τ decides a
tie, which is rare (τ is 1e-3 ulp of bfloat16 or less). A second rounding anywhere breaks that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Arrays = Mapping[str, np.ndarray]
Formula = Callable[[Arrays, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Oracle:
    """One algorithm: the suffixes it reads, and ΔW from them and W."""

    keys: frozenset[str]
    formula: Formula
    sees: str


ORACLES: dict[str, Oracle] = {}


def oracle(algo: str, *keys: str, sees: str = "base") -> Callable[[Formula], Formula]:
    """Registers the decorated formula for the algorithm that the library calls ``algo``."""

    def register(formula: Formula) -> Formula:
        assert algo not in ORACLES, f"two oracles for {algo}"
        assert sees in ("base", "sum")
        ORACLES[algo] = Oracle(frozenset(keys), formula, sees)
        return formula

    return register


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Exactly the stored numbers: every dtype of a file fits into float64."""
    return tensor.detach().cpu().to(torch.float64).numpy()


def expected_delta(algos: Iterable[str], tensors: Mapping[str, Tensor], weight: Tensor) -> np.ndarray:
    """ΔW of a layer made of ``algos`` (the core first, then the parts in order), in float64."""
    base = to_numpy(weight)
    arrays = {suffix: to_numpy(value) for suffix, value in tensors.items()}
    total = np.zeros(base.shape)
    for algo in algos:
        known = ORACLES[algo]
        own = {suffix: value for suffix, value in arrays.items() if suffix in known.keys}
        assert own, f"no tensors of {algo} among {sorted(arrays)}"
        delta = known.formula(own, base + total if known.sees == "sum" else base)
        assert delta.shape == base.shape, f"the oracle of {algo} answers in the wrong shape"
        total = total + delta
    return total


# ---- rounding -----------------------------------------------------------------------------------------

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
        off = values != nearest
        assert (np.abs(values - nearest) <= ulp(exact, got.dtype) * 1.001 + 2 * tau)[off].all()
        assert off.sum() <= max(1, 0.01 * off.size), "too many elements are not the nearest number"


# ---- algorithms ---------------------------------------------------------------------------------------


def _ratio(tensors: Arrays, rank: int) -> float:
    """alpha / rank; 1 for a file without alpha; ``scale`` replaces both."""
    if "scale" in tensors:
        return float(tensors["scale"].reshape(()))
    return float(tensors["alpha"].reshape(())) / rank if "alpha" in tensors else 1.0


def _matrix(value: np.ndarray) -> np.ndarray:
    return value.reshape(value.shape[0], -1)


def _two_factors(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Σ_a left[:, a] ∘ right[a, :], one rank at a time."""
    left, right = _matrix(left), _matrix(right)
    total = np.zeros((left.shape[0], right.shape[1]))
    for a in range(right.shape[0]):
        total += np.multiply.outer(left[:, a], right[a])
    return total


def _tucker(core: np.ndarray, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """ΔW[p, q, k…] = Σ_ab core[a, b, k…]·outer[p, a]·inner[b, q], one place of the kernel at a time."""
    kernel = core.shape[2:]
    total = np.zeros((outer.shape[0], inner.shape[1], *kernel))
    for place in np.ndindex(*kernel):
        at = (slice(None), slice(None), *place)
        total[at] = outer @ core[at] @ inner
    return total


@oracle("lora", "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "scale")
def _lora(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    up, down = tensors["lora_up.weight"], tensors["lora_down.weight"]
    if "lora_mid.weight" in tensors:
        change = _tucker(tensors["lora_mid.weight"], _matrix(up), _matrix(down))
    else:
        change = _two_factors(up, down)
    return _ratio(tensors, down.shape[0]) * change.reshape(weight.shape)


@oracle(
    "loha",
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    *("hada_t1", "hada_t2", "alpha", "scale"),
)
def _loha(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    def half(n: int) -> np.ndarray:
        a, b = tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"]
        if f"hada_t{n}" in tensors:
            return _tucker(tensors[f"hada_t{n}"], a.T, b)  # w_a is stored (r, o)
        return _two_factors(a, b).reshape(weight.shape)

    return _ratio(tensors, tensors["hada_w1_b"].shape[0]) * half(1) * half(2)


@oracle(
    "lokr",
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
    *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "scale"),
)
def _lokr(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    kernel = weight.shape[2:]
    # Where both factors are whole trainers ignore alpha, but A1111 does not ignore its scale.
    s = float(tensors["scale"]) if "scale" in tensors else 1.0
    if "lokr_w1" in tensors:
        w1 = _matrix(tensors["lokr_w1"])
    else:
        w1 = _two_factors(tensors["lokr_w1_a"], tensors["lokr_w1_b"])
        s = _ratio(tensors, tensors["lokr_w1_b"].shape[0])
    if "lokr_w2" in tensors:
        w2 = tensors["lokr_w2"]
    else:
        s = _ratio(tensors, tensors["lokr_w2_b"].shape[0])  # once, even if w1 is low-rank too
        if "lokr_t2" in tensors:
            w2 = _tucker(tensors["lokr_t2"], tensors["lokr_w2_a"].T, tensors["lokr_w2_b"])
        else:
            w2 = _two_factors(tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    inputs = w2[0].size // int(np.prod(kernel))
    w2 = w2.reshape(w2.shape[0], inputs, *kernel)
    # The product by its definition, on the axes of a convolution: every element of w1 times all of w2.
    product = np.einsum("pq,rs...->prqs...", w1, w2)
    return s * product.reshape(weight.shape)


def _stored(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    (change,) = tensors.values()
    return change.reshape(weight.shape)


for _algo, _key in (
    ("full", "diff"),
    ("full_bias", "diff_b"),
    ("norm", "w_norm"),
    ("norm_bias", "b_norm"),
):
    oracle(_algo, _key)(_stored)
