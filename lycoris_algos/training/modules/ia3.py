"""LyCORIS' class for (IA)³."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class IA3Module(LycorisBaseModule):
    """(IA)³: see ``adapters``."""

    name: ClassVar[str] = "ia3"
    algorithm: ClassVar[str] = "ia3"
    weight_list: ClassVar[tuple[str, ...]] = ("weight", "on_input")
    weight_list_det: ClassVar[tuple[str, ...]] = ("on_input",)
