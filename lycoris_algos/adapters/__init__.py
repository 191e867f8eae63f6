"""The stored algorithms, one file each. A file without a leading underscore is found by itself.

What a caller needs of this folder is ``LayerAdapter`` (one layer), ``apply_`` (adapters onto a weight) and
the registry's questions; the classes of the single algorithms are reached through the registry.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from torch import Tensor

from ._base import Algorithm, Base, Component, Extra, Magnitude
from ._fitting import FitRequest, Fitted
from ._layer import LayerAdapter, apply_
from ._registry import algorithms, component, extras, known_suffixes, modifiers, suffixes_beside
from ._rows import of_row_parts, row_part
from ._trained import PeftReading, PeftSettings, TrainingFacts

for _module in sorted(module.name for module in iter_modules(__path__)):
    if not _module.startswith("_"):
        import_module(f".{_module}", __name__)


def fittable() -> dict[str, type[Component]]:
    """{algo: class} of everything that the change of a weight can be stored as, in order of registration."""
    kinds = (*algorithms(), *(kind for kind in extras() if kind.target == "weight"))
    return {kind.algo: kind for kind in kinds if kind.can_be_fitted()}


def whole_change(change: Tensor, parameter: str) -> LayerAdapter:
    """An adapter that adds ``change`` to a "weight", or (as the adapter of a bias) to a "bias"."""
    kind = next(kind for kind in extras() if kind.target == parameter and kind.can_be_fitted())
    return LayerAdapter(extras=(kind.from_tensors({next(iter(kind.keys.names)): change}),))


__all__ = [
    "Algorithm",
    "Base",
    "Component",
    "Extra",
    "FitRequest",
    "Fitted",
    "LayerAdapter",
    "Magnitude",
    "PeftReading",
    "PeftSettings",
    "TrainingFacts",
    "algorithms",
    "apply_",
    "component",
    "extras",
    "fittable",
    "known_suffixes",
    "modifiers",
    "of_row_parts",
    "row_part",
    "suffixes_beside",
    "whole_change",
]
