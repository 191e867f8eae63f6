"""From plain tensors to stored forms, and what those do to weights and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._types import Factor
from ...adapters import Algorithm, Magnitude, begin, component
from ...ops.dtypes import compute_dtype
from ...structures import LayerOperation, Structure


def started(name: str, suffixes: Sequence[str], weight: Tensor, **options: Any) -> tuple[Tensor | None, ...]:
    """The tensors of ``suffixes`` that training of ``weight`` starts from; None for those there are not."""
    stored = begin(name, weight, **options).to_tensors()
    return tuple(stored.get(suffix) for suffix in suffixes)


def stored(
    algo: str, suffixes: Sequence[str], tensors: Sequence[Tensor | None], **numbers: float
) -> Algorithm:
    """The stored form of ``tensors``, in the order of ``suffixes``."""
    values = {name: value for name, value in zip(suffixes, tensors, strict=True) if value is not None}
    numbers_as_tensors = {name: torch.tensor(float(value)) for name, value in numbers.items()}
    made = component(algo).from_tensors({**values, **numbers_as_tensors})
    assert isinstance(made, Algorithm)
    return made


def magnitude(scale: Tensor, weight: Tensor, on_output: bool) -> Magnitude:
    """DoRA's lengths ``scale``, in whatever shape they come, of the outputs or the input channels."""
    kernel = (1,) * (weight.dim() - 2)
    shaped = scale.reshape(*((-1, 1) if on_output else (1, -1)), *kernel)
    made = component("dora").from_tensors({"dora_scale": shaped})
    assert isinstance(made, Magnitude)
    return made


def delta(
    algorithm: Algorithm, shape: Sequence[int], weight: Tensor | None = None, gamma: Factor = 1.0
) -> Tensor:
    """``gamma``·ΔW in ``shape``."""
    change = _cast(algorithm, shape)
    matrix = None if weight is None else weight.flatten(1).to(compute_dtype(weight.dtype))
    return change.delta(matrix).reshape(tuple(shape)) * gamma


def forward(
    algorithm: Algorithm,
    x: Tensor,
    shape: Sequence[int],
    options: Mapping[str, Any],
    known: Tensor | None = None,
    gamma: Factor = 1.0,
) -> Tensor:
    """``gamma``·(what ΔW adds to the output for ``x``) of a layer whose weight has ``shape``.

    ``known`` is the layer's own output, where ΔW depends on it.
    """
    weight = torch.empty(tuple(shape), device="meta")
    operation = LayerOperation(weight, dict(options) or None, None if known is None else (x, known))
    return _cast(algorithm, shape, x.dtype).forward(x, operation) * gamma


def _cast(algorithm: Algorithm, shape: Sequence[int], dtype: torch.dtype | None = None) -> Structure:
    first = next(value for _, value in algorithm.tensors())
    own = dtype or compute_dtype(first.dtype)
    return algorithm.structure(shape, compute_dtype(own)).cast(first.device, own)


def with_output(count: int, given: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """(the layer's output or None, the ``count`` tensors): LyCORIS 3 was not given the output before them."""
    if len(given) not in (count, count + 1):
        raise TypeError(f"{count} tensors are needed (None where there is none), not {len(given)}")
    return (None, tuple(given)) if len(given) == count else (given[0], tuple(given[1:]))
