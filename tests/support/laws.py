"""What the laws of adapters are tried on: every sample, as a layer and as a parameter of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import expected_delta
from samples import CASES, Target, targets
from torch import Tensor

from lycoris_algos import LayerAdapter
from lycoris_algos.structures import Structure

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
FACTOR_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
MULTIPLIERS = (1.0, 0.7, -0.5, 3.0)
every_target = pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def adapter(target: Target, tensors: dict[str, Tensor] | None = None) -> LayerAdapter:
    """The adapter of one parameter: of the layer's weight, or of its bias."""
    layer = LayerAdapter.from_tensors(target.case.tensors if tensors is None else tensors)
    if target.what == "weight":
        return layer
    assert layer.bias is not None
    return layer.bias


def made(target: Target, dtype: torch.dtype = torch.float64) -> tuple[Structure, Tensor, np.ndarray]:
    """(the structure of a sample, cast to ``dtype``; its weight and ΔW by the oracle as matrices)."""
    weight = target.weight(torch.float64)
    layer = adapter(target, target.case.stored(torch.float64))
    structure = layer.structure(target.shape, dtype, lambda: weight)
    expected = expected_delta(target.algos, target.case.tensors, weight)
    matrix = weight.reshape(target.shape[0], -1)
    return structure.cast(weight.device, dtype), matrix.to(dtype), expected.reshape(matrix.shape)


def factors(layer: LayerAdapter) -> dict[str, Tensor]:
    """Everything of a layer that is kept as a tensor; what is kept as a number (alpha) is not here."""
    return {suffix: value for part in layer.components() for suffix, value in part.tensors()}


def moved_(item: object) -> object:
    """A copy of what is a tensor; real numbers in another dtype, so that no copy can be the original."""
    if not isinstance(item, Tensor):
        return item
    return item.double() if item.is_floating_point() else item.clone()
