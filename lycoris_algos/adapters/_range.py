"""Factors for a number type of little range: each is multiplied by a power of two, and alpha makes up for it.

Trained factors are often below 2⁻⁹, the smallest number of fp8 (e4m3), and some pass its largest, 448.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import Tensor

from ..ops.dtypes import times
from ._base import Algorithm

_A = TypeVar("_A", bound=Algorithm)
# Powers of two; alpha stays far from the ends of float32 with the factors of a LoHa.
_FURTHEST = 20
# Far enough above fp8's smallest number for full precision, and small enough that products of the factors,
# with activations too, stay within fp16 for readers who compute in it.
_REACH = 4.0


def filling_range(algorithm: _A) -> _A:
    """``algorithm`` with each of its tensors, to which its change is in proportion, reaching to about 4.

    They become float32. Itself where nothing that it stores could make up for it.
    """
    known: Any = algorithm
    if known.fixed_scale is None and algorithm.rank is None:
        return algorithm
    changed: dict[str, Any] = {}
    product = 1.0
    for field in fields(known):
        value = getattr(known, field.name)
        if isinstance(value, Tensor):
            reach = float(value.float().abs().max())
            if math.isfinite(reach) and reach > 0.0:
                power = math.floor(math.log2(_REACH / reach))
                factor = 2.0 ** max(-_FURTHEST, min(power, _FURTHEST))
                changed[field.name] = times(value.float(), factor)
                product *= factor
    if known.fixed_scale is not None:
        changed["fixed_scale"] = known.fixed_scale / product
    else:
        changed["alpha"] = (known.rank if known.alpha is None else known.alpha) / product
    filled: _A = replace(known, **changed)
    return filled
