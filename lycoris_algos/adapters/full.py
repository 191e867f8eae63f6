"""Full: the change of a layer stored whole, ``diff`` for its weight and ``diff_b`` for its bias.

    W' = W + m·diff          b' = b + m·diff_b          b' = b + m·s·lora_B.bias

Trained by LyCORIS' ``full`` and by most fine-tune extractors; often beside an algorithm on the same layer,
where all of it adds up. ``diff_b`` alone is legal. PEFT's ``lora_bias`` is stored as ``lora_B.bias`` and
scaled as the LoRA beside it is, by s: a ``diff_b`` once that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ._base import Algorithm, Extra, scale
from ._fitting import FitRequest, Fitted, Price
from ._keys import KeySpec
from ._stored import tensor
from ._whole import WholeChange, fit_whole, price_whole
from .lora import LoRA

_REFERENCE = "https://github.com/KohakuBlueleaf/LyCORIS/blob/main/docs/Algo-Details.md"


@dataclass(frozen=True, eq=False)
class FullWeight(WholeChange):
    """``diff``: the change of a weight, in the weight's shape."""

    algo: ClassVar[str] = "full"
    title: ClassVar[str] = "Full"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("diff",))
    target: ClassVar[str] = "weight"
    trained_as: ClassVar[tuple[str, ...]] = ("full",)
    on_bias: ClassVar[str | None] = "full_bias"

    universal: ClassVar[bool] = True

    change: Tensor = tensor("diff")

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        return fit_whole(cls, request)

    @classmethod
    def prices(cls, request: FitRequest) -> list[Price]:
        return price_whole(request)


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

    def to_peft(self, algorithm: Algorithm) -> Extra | None:
        return LoRABias(self.change) if isinstance(algorithm, LoRA) and _scale_of(algorithm) == 1.0 else None


@dataclass(frozen=True, eq=False)
class LoRABias(WholeChange):
    """``lora_B.bias``: the change of a bias before it is scaled, (o,)."""

    algo: ClassVar[str] = "lora_bias"
    title: ClassVar[str] = "Full"
    reference: ClassVar[str] = "https://huggingface.co/docs/peft/package_reference/lora"
    keys: ClassVar[KeySpec] = KeySpec(required=("lora_B.bias",))
    target: ClassVar[str] = "bias"

    change: Tensor = tensor("lora_B.bias")

    def beside(self, algorithm: Algorithm | None) -> tuple[Extra, str]:
        own = FullBias(self.change)
        if not isinstance(algorithm, LoRA):
            return own, ""
        return own.multiplied(_scale_of(algorithm)), ""


def _scale_of(lora: LoRA) -> float:
    return scale(lora.alpha, lora.rank, lora.fixed_scale)
