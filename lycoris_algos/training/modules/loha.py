"""LyCORIS' class for LoHa."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class LohaModule(LycorisBaseModule):
    """LoHa: see ``adapters``."""

    name: ClassVar[str] = "loha"
    algorithm: ClassVar[str] = "loha"
    weight_list: ClassVar[tuple[str, ...]] = (
        "hada_w1_a",
        "hada_w1_b",
        "hada_w2_a",
        "hada_w2_b",
        "hada_t1",
        "hada_t2",
        "alpha",
        "dora_scale",
    )
    weight_list_det: ClassVar[tuple[str, ...]] = ("hada_w1_a",)
    decomposes: ClassVar[bool] = True
