"""Adapters as files store them, small and seeded: every algorithm × kind of layer × form that it comes in.

Raw tensors only; the library is not used. **A new algorithm** adds one decorated generator, in a module of
its own or one that it belongs to, and every law of tests/unit/adapters then holds it (``oracles`` needs its
formula as well):

    @samples("ia3")
    def _ia3(draw):
        for kind, shape in LAYERS.items():
            yield Case(f"{kind}-out", ("ia3",), {"weight": draw(shape[0]), "on_input": ...}, shape)

A layer of several components names all of them, in the order in which they are applied. What PEFT trains is
held against PEFT itself by a line ``peft(name, configuration, layers, options)`` beside the samples.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ._case import CASES, LAYERS, Case, Draw, Target, alpha, kernel_size, samples, targets
from ._peft import PEFT_SAMPLES, peft

for _module in sorted(module.name for module in iter_modules(__path__)):  # they register their cases
    if not _module.startswith("_"):
        import_module(f".{_module}", __name__)

__all__ = [
    "CASES",
    "LAYERS",
    "PEFT_SAMPLES",
    "Case",
    "Draw",
    "Target",
    "alpha",
    "kernel_size",
    "peft",
    "samples",
    "targets",
]
