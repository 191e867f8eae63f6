"""LyCORIS' module classes: each a name, an order of arguments and a list of keys for ``AdapterModule``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ...ops.divisors import factorization
from .base import LycorisBaseModule
from .boft import ButterflyOFTModule
from .diag_oft import DiagOFTModule
from .dylora import DyLoraModule
from .full import FullModule
from .glora import GLoRAModule
from .ia3 import IA3Module
from .locon import LoConModule
from .loha import LohaModule
from .lokr import LokrModule
from .norms import NormModule
from .tlora import TLoraModule

MODULE_LIST: list[type[LycorisBaseModule]] = [
    LoConModule,
    LohaModule,
    IA3Module,
    LokrModule,
    FullModule,
    NormModule,
    DiagOFTModule,
    ButterflyOFTModule,
    GLoRAModule,
    DyLoraModule,
    TLoraModule,
]

__all__ = [
    "MODULE_LIST",
    "ButterflyOFTModule",
    "DiagOFTModule",
    "DyLoraModule",
    "FullModule",
    "GLoRAModule",
    "IA3Module",
    "LoConModule",
    "LohaModule",
    "LokrModule",
    "LycorisBaseModule",
    "NormModule",
    "TLoraModule",
    "factorization",
    "get_module",
    "make_module",
]


def get_module(
    lyco_state_dict: Mapping[str, Tensor], lora_name: str
) -> tuple[type[LycorisBaseModule] | None, tuple[Tensor | None, ...] | None]:
    """(the class of the layer ``lora_name`` of a file, its tensors); (None, None) where there is none."""
    for kind in MODULE_LIST:
        if kind.algo_check(lyco_state_dict, lora_name):
            return kind, tuple(kind.extract_state_dict(lyco_state_dict, lora_name))
    return None, None


def make_module(
    lyco_type: type[LycorisBaseModule] | None,
    params: Sequence[Tensor | None] | None,
    lora_name: str,
    orig_module: nn.Module,
) -> LycorisBaseModule | None:
    """A module on ``orig_module`` that goes on with what ``get_module`` found; None for nothing."""
    if lyco_type is None or params is None:
        return None
    return lyco_type.make_module_from_state_dict(lora_name, orig_module, *params)
