"""Adapters as files store them, small and seeded: every algorithm × kind of layer × form that it comes in.

Raw tensors only; the library is not used. **A new algorithm** adds one decorated generator to the module that
it belongs to, and every law of tests/unit/adapters then holds it (``oracles`` needs its formula as well):

    @samples("ia3")
    def _ia3(draw):
        for kind, shape in LAYERS.items():
            yield Case(f"{kind}-out", ("ia3",), {"weight": draw(shape[0]), "on_input": ...}, shape)

A layer of several components names all of them, in the order in which they are applied.
"""

from __future__ import annotations

from . import decomposed, lowrank, multiplying, parts, rotating  # noqa: F401 - they register their cases
from ._case import CASES, LAYERS, Case, Draw, Target, alpha, kernel_size, samples, targets

__all__ = ["CASES", "LAYERS", "Case", "Draw", "Target", "alpha", "kernel_size", "samples", "targets"]
