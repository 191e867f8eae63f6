"""LyCORIS' class for Diag-OFT."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class DiagOFTModule(LycorisBaseModule):
    """Diag-OFT: see ``adapters``."""

    name: ClassVar[str] = "diag-oft"
    algorithm: ClassVar[str] = "diag-oft"
    weight_list: ClassVar[tuple[str, ...]] = ("oft_blocks", "rescale", "alpha")
    weight_list_det: ClassVar[tuple[str, ...]] = ("oft_blocks",)
