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

from ...lycoris_algos.structures import Enlarged, Structure, apply_
from ...lycoris_algos.text import listed

# How ComfyUI's weight follows from the one that a file means: as it is; through a function, so that a change
# is formed first and mapped then; through a function that undoes itself, so that the weight can be mapped
# back for an adapter that depends on it.
PLAIN, FUNCTION, INVOLUTION = "plain", "function", "involution"


class LycorisPatch(WeightAdapterBase):  # type: ignore[misc]
    """The changes of a stack for one weight, as ComfyUI's ``add_patches`` takes it.

    ``weights`` is (mapping, multiplier, change…, multiplier, change…, …), each change as
    ``Structure.to_values`` writes it. ``mapping`` is one of the words above.
    """

    name = "lycoris"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(
        cls,
        entries: Sequence[tuple[Structure, float]],
        keys: set[str],
        mapping: str = PLAIN,
    ) -> LycorisPatch:
        """A patch of (change, multiplier) in order of application; ``keys`` are the file's layer names."""
        flat: list[Any] = [mapping]
        for change, multiplier in entries:
            flat += (multiplier, *change.to_values())
        return cls(keys, tuple(flat))

    def __repr__(self) -> str:
        return f"LycorisPatch({self.weights[0]}, {listed(self.loaded_keys, 1)})"

    @cached_property
    def entries(self) -> tuple[tuple[Structure, float], ...]:
        """(change, multiplier) in order of application; views of ``weights``, which never change."""
        values = iter(self.weights[1:])
        return tuple((Structure.from_values(values), multiplier) for multiplier in values)

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
        scaled = [(change, multiplier * strength) for change, multiplier in self.entries]
        mapping = self.weights[0]
        return apply_(
            weight,
            scaled,
            transform=None if mapping == PLAIN else function,
            inverse=function if mapping == INVOLUTION else None,
        )

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """The shape that the weight gets, where an adapter enlarges it; newer hosts ask."""
        shapes = (change.shape for change, _ in self.entries if isinstance(change, Enlarged))
        return max(shapes, default=None)
