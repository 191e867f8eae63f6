"""What every algorithm computes, written from its formula in numpy float64, and how close is close enough.

Nothing of the library is used here, not even its names for things: an oracle reads the tensors as a file
stores them, and works by loops, outer products and einsum. **A new algorithm** adds one decorated function,
in a module of its own or one that it belongs to:

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
tie, which is rare where τ is far below a step of the dtype (1e-3 of one of bfloat16). A second rounding
anywhere breaks that.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ._compare import check_delta, check_rounded_once, round_once, same_bits, tolerance, ulp
from ._registry import ORACLES, Oracle, expected_delta, oracle, to_numpy

for _module in sorted(module.name for module in iter_modules(__path__)):  # they register their formulas
    if not _module.startswith("_"):
        import_module(f".{_module}", __name__)

__all__ = [
    "ORACLES",
    "Oracle",
    "check_delta",
    "check_rounded_once",
    "expected_delta",
    "oracle",
    "round_once",
    "same_bits",
    "to_numpy",
    "tolerance",
    "ulp",
]
