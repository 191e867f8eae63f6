"""Full: the change of a layer stored whole, ``diff`` for its weight and ``diff_b`` for its bias.

    W' = W + m·diff          b' = b + m·diff_b

Trained by LyCORIS' ``full`` and by most fine-tune extractors; often beside an algorithm on the same layer,
where all of it adds up. ``diff_b`` alone is legal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ._fitting import FitRequest, Fitted
from ._keys import KeySpec
from ._stored import tensor
from ._whole import WholeChange, fit_whole

_REFERENCE = "https://github.com/KohakuBlueleaf/LyCORIS/blob/main/docs/Algo-Details.md"


@dataclass(frozen=True, eq=False)
class FullWeight(WholeChange):
    """``diff``: the change of a weight, in the weight's shape."""

    algo: ClassVar[str] = "full"
    title: ClassVar[str] = "Full"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("diff",))
    target: ClassVar[str] = "weight"

    universal: ClassVar[bool] = True

    change: Tensor = tensor("diff")

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        return fit_whole(cls, request)


@dataclass(frozen=True, eq=False)
class FullBias(WholeChange):
    """``diff_b``: the change of a bias, (o,)."""

    algo: ClassVar[str] = "full_bias"
    title: ClassVar[str] = "Full"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("diff_b",))
    target: ClassVar[str] = "bias"

    change: Tensor = tensor("diff_b")

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        return fit_whole(cls, request)
