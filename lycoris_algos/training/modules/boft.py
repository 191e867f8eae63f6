"""LyCORIS' class for BOFT."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class ButterflyOFTModule(LycorisBaseModule):
    """BOFT: see ``adapters``."""

    name: ClassVar[str] = "boft"
    algorithm: ClassVar[str] = "boft"
    weight_list: ClassVar[tuple[str, ...]] = ("oft_blocks", "rescale", "alpha")
    weight_list_det: ClassVar[tuple[str, ...]] = ("oft_blocks",)
