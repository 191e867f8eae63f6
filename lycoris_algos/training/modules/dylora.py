"""LyCORIS' class for DyLoRA."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class DyLoraModule(LycorisBaseModule):
    """DyLoRA: see ``adapters``."""

    name: ClassVar[str] = "dylora"
    algorithm: ClassVar[str] = "dylora"
    weight_list: ClassVar[tuple[str, ...]] = (
        "lora_up.weight",
        "lora_down.weight",
        "lora_mid.weight",
        "alpha",
    )
    weight_list_det: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[tuple[str, ...]] = (
        *LycorisBaseModule.order[:-1],
        "block_size",
        "use_scalar",
    )
