"""LyCORIS' class for norms."""

from __future__ import annotations

from typing import ClassVar

from .base import LycorisBaseModule


class NormModule(LycorisBaseModule):
    """The weight and the bias of a norm: see ``adapters``."""

    name: ClassVar[str] = "norm"
    algorithm: ClassVar[str] = "norm"
    support_module: ClassVar[frozenset[str]] = frozenset({"layernorm", "groupnorm"})
    weight_list: ClassVar[tuple[str, ...]] = ("w_norm", "b_norm")
    weight_list_det: ClassVar[tuple[str, ...]] = ("w_norm",)
    order: ClassVar[tuple[str, ...]] = ("multiplier", "rank_dropout", "module_dropout", "rank_dropout_scale")
