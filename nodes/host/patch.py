"""The bridge: one patch class through which every algorithm reaches ComfyUI's ModelPatcher.

A patch holds the whole stack of one Apply node for one weight, so that a weight handed over in half
precision is upcast and rounded once, however many adapters change it. The node's strength stays outside, as
ComfyUI's ``strength_patch``, where hooks and schedules can scale it.

Newer hosts rebuild a patch as ``type(p)(p.loaded_keys, moved(p.weights))`` each time a layer is streamed to
the GPU, and call it while sampling. So everything lives in ``weights``, a flat tuple of tensors, numbers and
strings, and ``calculate_weight`` is pure, reads nothing back from the GPU and does no work that could have
been done before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from ...lycoris_algos import LayerAdapter, apply_


class LycorisPatch(WeightAdapterBase):  # type: ignore[misc]
    """A stack of adapters for one weight, as ComfyUI's ``add_patches`` takes it.

    ``weights`` is (has_function, multiplier, layer…, multiplier, layer…, …), each layer as
    ``LayerAdapter.to_values`` writes it. ``has_function`` says that ComfyUI maps this target through a
    function (a fused or reordered weight), in which case the delta is formed and mapped before it is added.
    """

    name = "lycoris"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(
        cls,
        entries: Sequence[tuple[LayerAdapter, float]],
        keys: set[str],
        *,
        has_function: bool = False,
    ) -> LycorisPatch:
        """A patch of (adapter, multiplier) in order of application; ``keys`` are the file's layer names."""
        flat: list[Any] = [has_function]
        for layer, multiplier in entries:
            flat += (multiplier, *layer.to_values())
        return cls(keys, tuple(flat))

    def entries(self) -> Iterator[tuple[LayerAdapter, float]]:
        """(adapter, multiplier) in order of application."""
        values = iter(self.weights[1:])
        for multiplier in values:
            yield LayerAdapter.from_values(values), multiplier

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function: Callable[[torch.Tensor], torch.Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        """Changes ``weight`` in place by strength times the stack, and returns it.

        ``weight`` is already narrowed by ``offset`` and scaled by ``strength_model``. The maths is done
        in float32 whatever ``intermediate_dtype`` says.
        """
        scaled = [(layer, multiplier * strength) for layer, multiplier in self.entries()]
        return apply_(weight, scaled, transform=function if self.weights[0] else None)

    def calculate_shape(self, key: str) -> None:
        """No adapter here changes the shape of a weight."""
        return None
