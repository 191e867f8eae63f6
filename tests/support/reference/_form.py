"""How a form of a file is written down, and what most of them need.

A form is a function that draws tensors for a weight and a bias, and returns (tensors, ΔW, what else a
``Reference`` needs to know).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._case import ALPHA, RANK, Case, Reference
from ._maths import (
    draw,
    product,
)

Form = Callable[[Tensor, Tensor], tuple[dict[str, Tensor], Tensor, dict[str, Any]]]
FORMS: list[Case] = []
LINEAR, SQUARE = (64, 96), (64, 64)
CONV1, CONV2 = (64, 48, 3), (64, 48, 3, 3)


def form(name: str, shape: tuple[int, ...], algo: str = "lora") -> Callable[[Form], Form]:
    def register(formula: Form) -> Form:
        def make() -> Reference:
            weight, bias = torch.randn(shape), torch.randn(shape[0])
            tensors, delta, more = formula(weight.double(), bias.double())
            stored = {
                suffix: value if value.dtype != torch.float64 else value.float()
                for suffix, value in tensors.items()
            }
            return Reference(name, stored, weight, bias, delta.reshape(shape), **more)

        FORMS.append(Case(name, algo, make))
        return formula

    return register


def low_rank_pair(weight: Tensor, rank: int = RANK) -> tuple[dict[str, Tensor], Tensor]:
    """Factors under kohya's names without an alpha, and up·down."""
    ones = (1,) * (weight.dim() - 2)
    up, down = draw(weight.shape[0], rank, *ones), draw(rank, *weight.shape[1:])
    return {"lora_up.weight": up, "lora_down.weight": down}, product(up, down, weight)


def network_args(module: str, dim: int = RANK, alpha: float = ALPHA, **arguments: str) -> dict[str, str]:
    return {
        "ss_network_module": module,
        "ss_network_dim": str(dim),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
    }


PEFT = {"layer": "base_model.model.x"}
