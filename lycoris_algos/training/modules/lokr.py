"""LyCORIS' class for LoKr."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class LokrModule(LycorisBaseModule):
    """LoKr: see ``adapters``."""

    name: ClassVar[str] = "kron"
    algorithm: ClassVar[str] = "lokr"
    weight_list: ClassVar[tuple[str, ...]] = (
        "lokr_w1",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t1",
        "lokr_t2",
        "alpha",
        "dora_scale",
    )
    weight_list_det: ClassVar[tuple[str, ...]] = ("lokr_w1", "lokr_w1_a")
    decomposes: ClassVar[bool] = True
