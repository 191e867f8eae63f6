"""``reshape_weight``: the base weight is enlarged with zeros before the adapter is added.

Control models that take more input channels than their base (BFL's Flux control adapters on ``img_in``)
store the new shape (o', i') beside a LoRA of that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ShapeMismatchError
from ..structures import require_enlargement
from ._keys import KeySpec
from ._registry import register
from ._stored import Stored, whole_numbers


@dataclass(frozen=True, eq=False)
class Reshape(Stored):
    """The shape that the weight must have."""

    role: ClassVar[str] = "reshape"
    algo: ClassVar[str] = "reshape"
    title: ClassVar[str] = "reshaped"
    reference: ClassVar[str] = "https://huggingface.co/black-forest-labs/FLUX.1-Depth-dev-lora"
    keys: ClassVar[KeySpec] = KeySpec(required=("reshape_weight",))

    shape: tuple[int, ...] = whole_numbers("reshape_weight")

    def check(self) -> None:
        if not self.shape or min(self.shape) < 1 or max(self.shape) > 2**24:
            raise ShapeMismatchError(f"'reshape_weight' asks for the impossible shape {self.shape}")

    def new_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a weight of ``shape`` gets. Raises ShapeMismatchError if that is no enlargement."""
        require_enlargement(shape, self.shape)
        return self.shape


register(Reshape)
