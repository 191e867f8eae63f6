"""Norm: the trained weight and bias of a normalisation layer, stored as differences.

    w' = w + m·w_norm          b' = b + m·b_norm          all (c,)

Written by LyCORIS with ``train_norm``; ``b_norm`` may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ._keys import KeySpec
from ._stored import tensor
from ._whole import WholeChange

_REFERENCE = "https://github.com/KohakuBlueleaf/LyCORIS/blob/main/docs/Preset.md"


@dataclass(frozen=True, eq=False)
class NormWeight(WholeChange):
    """``w_norm``: the change of a norm's weight, (c,)."""

    algo: ClassVar[str] = "norm"
    title: ClassVar[str] = "Norm"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("w_norm",))
    target: ClassVar[str] = "weight"
    trained_as: ClassVar[tuple[str, ...]] = ("norm",)
    on_bias: ClassVar[str | None] = "norm_bias"

    change: Tensor = tensor("w_norm")


@dataclass(frozen=True, eq=False)
class NormBias(WholeChange):
    """``b_norm``: the change of a norm's bias, (c,)."""

    algo: ClassVar[str] = "norm_bias"
    title: ClassVar[str] = "Norm"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("b_norm",))
    target: ClassVar[str] = "bias"

    change: Tensor = tensor("b_norm")
