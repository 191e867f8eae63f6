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

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from ...lycoris_algos import LayerAdapter, apply_

# How ComfyUI's weight follows from the one that a file means: as it is; through a function, so that a change
# is formed first and mapped then; through a function that undoes itself, so that the weight can be mapped
# back for an adapter that depends on it.
PLAIN, FUNCTION, INVOLUTION = "plain", "function", "involution"


class LycorisPatch(WeightAdapterBase):  # type: ignore[misc]
    """A stack of adapters for one weight, as ComfyUI's ``add_patches`` takes it.

    ``weights`` is (mapping, multiplier, layer…, multiplier, layer…, …), each layer as
    ``LayerAdapter.to_values`` writes it. ``mapping`` is one of the words below.
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
        mapping: str = PLAIN,
    ) -> LycorisPatch:
        """A patch of (adapter, multiplier) in order of application; ``keys`` are the file's layer names."""
        flat: list[Any] = [mapping]
        for layer, multiplier in entries:
            flat += (multiplier, *layer.to_values())
        return cls(keys, tuple(flat))

    @cached_property
    def entries(self) -> tuple[tuple[LayerAdapter, float], ...]:
        """(adapter, multiplier) in order of application; views of ``weights``, which never change."""
        values = iter(self.weights[1:])
        return tuple((LayerAdapter.from_values(values), multiplier) for multiplier in values)

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
        in float32 whatever ``intermediate_dtype`` says. Only an adapter that enlarges its weight makes a
        new one.
        """
        scaled = [(layer, multiplier * strength) for layer, multiplier in self.entries]
        mapping = self.weights[0]
        return apply_(
            weight,
            scaled,
            transform=None if mapping == PLAIN else function,
            inverse=function if mapping == INVOLUTION else None,
        )

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """The shape that the weight gets, where an adapter enlarges it; newer hosts ask."""
        shapes = (layer.reshape.shape for layer, _ in self.entries if layer.reshape is not None)
        return max(shapes, default=None)
