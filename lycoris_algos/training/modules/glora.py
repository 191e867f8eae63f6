"""LyCORIS' class for GLoRA."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class GLoRAModule(LycorisBaseModule):
    """GLoRA: see ``adapters``."""

    name: ClassVar[str] = "glora"
    algorithm: ClassVar[str] = "glora"
    weight_list: ClassVar[tuple[str, ...]] = (
        "a1.weight",
        "a2.weight",
        "b1.weight",
        "b2.weight",
        "bm.weight",
        "alpha",
    )
    weight_list_det: ClassVar[tuple[str, ...]] = ("a1.weight",)
