"""What training asks of a layer: where it begins, which tensors it changes, the same with others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import BadValueError
from ..structures import ScaledRows, Structure
from ..text import listed, quoted
from . import _registry
from ._base import Algorithm, Component, Extra, Magnitude, Shape
from ._layer import LayerAdapter


def trainable() -> dict[str, type[Component]]:
    """{a trainer's name: class} of everything that training can begin with, in order of registration."""
    return _registry.trained()


def training_options(name: str) -> tuple[str, ...]:
    """The options that ``name`` understands, beside those that every layer has."""
    parameters = inspect.signature(_class(name).begin).parameters.values()
    own = (parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
    return (*own, "weight_decompose", "wd_on_out")


def begin(
    name: str,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_decompose: bool = False,
    wd_on_out: bool = True,
    **options: Any,
) -> LayerAdapter:
    """The adapter that training of ``weight`` (and ``bias``) starts from, in float32 beside it.

    ``name`` is a trainer's ("lora", "diag-oft" …); ``options`` are those of ``training_options``. Raises
    BadValueError for another name, and for options that it does not understand or that do not fit.
    """
    unknown = sorted(options.keys() - set(training_options(name)))
    if unknown:
        raise BadValueError(
            f"{quoted(name)} does not understand {listed(unknown)}. "
            f"Its options are {', '.join(training_options(name))}"
        )
    kind = _class(name)
    started = kind.begin(weight, **options)
    magnitude = _magnitude().begin(weight, wd_on_out) if weight_decompose else None
    if isinstance(started, Algorithm):
        return LayerAdapter(started, magnitude=magnitude)
    assert isinstance(started, Extra)
    on_bias = None if started.on_bias is None or bias is None else _registry.component(started.on_bias)
    beside = () if on_bias is None or bias is None else (on_bias.begin(bias),)  # type: ignore[attr-defined]
    return LayerAdapter(extras=(started,), bias_extras=beside, magnitude=magnitude)


def trained_suffixes(layer: LayerAdapter) -> frozenset[str]:
    """The suffixes of the tensors of ``layer`` that training changes."""
    return frozenset().union(*(item.trained() for item in layer.components()))


def with_tensors(layer: LayerAdapter, tensors: Mapping[str, Tensor]) -> LayerAdapter:
    """``layer`` with ``tensors``, by suffix, in the place of its own; see ``Stored.with_tensors``."""
    algorithm, magnitude = layer.algorithm, layer.magnitude
    algorithm = None if algorithm is None else algorithm.with_tensors(tensors)
    biases = tuple(extra.with_tensors(tensors) for extra in layer.bias_extras if extra.keys.names)
    return LayerAdapter(
        algorithm,
        tuple(extra.with_tensors(tensors) for extra in layer.extras),
        biases if algorithm is None else (*biases, *algorithm.bias_extras()),
        None if magnitude is None else magnitude.with_tensors(tensors),
        layer.reshape,
    )


def change_in_step(layer: LayerAdapter, shape: Shape, dtype: torch.dtype, kept: Tensor | None) -> Structure:
    """What ``layer`` does to a weight of ``shape``, each row of its ΔW times a number of ``kept`` (o,)."""
    plain = layer.magnitude is None and layer.reshape is None
    change = (layer if plain else replace(layer, magnitude=None, reshape=None)).structure(shape, dtype)
    if kept is not None:
        change = ScaledRows(change, kept)
    return change if layer.magnitude is None else layer.magnitude.around(change)


def resumed(layer: LayerAdapter, weight: Tensor) -> LayerAdapter:
    """``layer`` in the form that goes on being trained on ``weight``; raises as ``Algorithm.resumed``."""
    return layer if layer.algorithm is None else replace(layer, algorithm=layer.algorithm.resumed(weight))


def _class(name: str) -> type[Component]:
    known = _registry.trained()
    if name not in known:
        raise BadValueError(f"{quoted(name)} is not trained. Choose one of {', '.join(known)}")
    return known[name]


def _magnitude() -> type[Magnitude]:
    kinds = (kind for kind in _registry.modifiers() if issubclass(kind, Magnitude))
    return next(kinds)
