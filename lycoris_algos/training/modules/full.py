"""LyCORIS' class for whole changes."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class FullModule(LycorisBaseModule):
    """whole changes: see ``adapters``."""

    name: ClassVar[str] = "full"
    algorithm: ClassVar[str] = "full"
    weight_list: ClassVar[tuple[str, ...]] = ("diff", "diff_b")
    weight_list_det: ClassVar[tuple[str, ...]] = ("diff",)
