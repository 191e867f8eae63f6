"""The stored algorithms, one file each. A file without a leading underscore is found by itself.

What a caller needs of this folder is ``LayerAdapter`` (one layer), ``apply_`` (adapters onto a weight) and
the registry's questions; the classes of the single algorithms are reached through the registry.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from torch import Tensor

from ._base import Algorithm, Base, Component, Extra, Magnitude
from ._fitting import FitRequest, Fits, Fitted, Price
from ._layer import LayerAdapter, apply_
from ._registry import algorithms, component, extras, known_suffixes, modifiers, suffixes_beside
from ._rows import of_row_parts, row_part
from ._trained import PeftReading, PeftSettings, TrainingFacts
from ._training import (
    begin,
    change_in_step,
    resumed,
    trainable,
    trained_suffixes,
    training_options,
    with_tensors,
)

for _module in sorted(module.name for module in iter_modules(__path__)):
    if not _module.startswith("_"):
        import_module(f".{_module}", __name__)

# Only now: registration in the order of names is the order in which extras are added.
from .sparse import SparseWeight  # noqa: E402


def fittable() -> dict[str, type[Component]]:
    """{algo: class} of everything that the change of a weight can be stored as, in order of registration."""
    kinds = (*algorithms(), *(kind for kind in extras() if kind.target == "weight"))
    return {kind.algo: kind for kind in kinds if kind.can_be_fitted()}


def whole_change(change: Tensor, parameter: str) -> LayerAdapter:
    """An adapter that adds ``change`` to a "weight", or (as the adapter of a bias) to a "bias"."""
    kind = next(kind for kind in extras() if kind.target == parameter and kind.can_be_fitted())
    return LayerAdapter(extras=(kind.from_tensors({next(iter(kind.keys.names)): change}),))


def fitted_layer(fitted: Fitted, extra: Extra | None = None) -> LayerAdapter:
    """An adapter of what was fitted, with ``extra`` beside it."""
    more = () if extra is None else (extra,)
    if isinstance(fitted.stored, Algorithm):
        return LayerAdapter(algorithm=fitted.stored, extras=more, magnitude=fitted.magnitude)
    assert isinstance(fitted.stored, Extra)
    return LayerAdapter(extras=(fitted.stored, *more))


def residual_elements(residual: Tensor, sparsity: float) -> Extra | None:
    """The largest elements of ``residual`` (o, c), all but the share ``sparsity``; None if all are 0."""
    return SparseWeight.largest(residual, sparsity)


def joined(layer: LayerAdapter | None, adapter: LayerAdapter, parameter: str) -> LayerAdapter:
    """``layer``, if there is one, with ``adapter`` as that of its "weight" or its "bias"."""
    known = layer or LayerAdapter()
    if parameter == "bias":
        return replace(known, bias_extras=adapter.extras)
    return replace(adapter, bias_extras=known.bias_extras)


__all__ = [
    "Algorithm",
    "Base",
    "Component",
    "Extra",
    "FitRequest",
    "Fits",
    "Fitted",
    "LayerAdapter",
    "Magnitude",
    "PeftReading",
    "PeftSettings",
    "Price",
    "TrainingFacts",
    "algorithms",
    "apply_",
    "begin",
    "change_in_step",
    "component",
    "extras",
    "fittable",
    "fitted_layer",
    "joined",
    "known_suffixes",
    "modifiers",
    "of_row_parts",
    "residual_elements",
    "resumed",
    "row_part",
    "suffixes_beside",
    "trainable",
    "trained_suffixes",
    "training_options",
    "whole_change",
    "with_tensors",
]
