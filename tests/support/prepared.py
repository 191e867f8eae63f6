"""An adapter as ComfyUI's weights meet it: its change made once, from the weight that it was trained on."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Prepared:
    """The change of ``layer`` (of any copy of the library), made once for ``base`` and kept in float32."""

    def __init__(self, layer: Any, base: Tensor) -> None:
        self.weight_components = layer.weight_components
        self.structure = layer.structure(base.shape, base=lambda: base)

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW of ``weight``, computed in its dtype."""
        matrix = weight.reshape(weight.shape[0] if weight.dim() else 1, -1)
        return self.structure.cast(weight.device, weight.dtype).delta(matrix).reshape(weight.shape)

    def add_to_(self, weight: Tensor, multiplier: float) -> Tensor:
        """weight += multiplier·ΔW(weight), in place."""
        from lycoris_algos.structures import apply_

        return apply_(weight, [(self.structure, multiplier)])
