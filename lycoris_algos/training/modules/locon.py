"""LyCORIS' class for LoRA and LoCon."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class LoConModule(LycorisBaseModule):
    """LoRA and LoCon: see ``adapters``."""

    name: ClassVar[str] = "locon"
    algorithm: ClassVar[str] = "lora"
    weight_list: ClassVar[tuple[str, ...]] = (
        "lora_up.weight",
        "lora_down.weight",
        "lora_mid.weight",
        "alpha",
        "dora_scale",
    )
    weight_list_det: ClassVar[tuple[str, ...]] = ("lora_up.weight",)
    decomposes: ClassVar[bool] = True
