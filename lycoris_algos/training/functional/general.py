"""Functions that the algorithms of the functional interface share, by LyCORIS' names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from ..._types import Factor
from ...ops.divisors import factorization, power2factorization
from ...ops.tucker import absorb_input
from ...structures import Dense, Sum
from ._stored import magnitude

#: The operation of a layer, by the number of dimensions of its weight.
FUNC_LIST: list[Callable[..., Tensor] | None] = [
    None,
    None,
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
]

__all__ = [
    "FUNC_LIST",
    "add_scaled",
    "apply_dora_scale",
    "factorization",
    "power2factorization",
    "rebuild_tucker",
    "tucker_weight",
    "tucker_weight_from_conv",
    "weight_decompose",
]


def tucker_weight(wa: Tensor, wb: Tensor, t: Tensor) -> Tensor:
    """Σ_ab t[a, b, k…]·wa[a, p]·wb[b, q] as (p, q, k…), of ``wa`` (a, p), ``wb`` (b, q), ``t`` (a, b, k…)."""
    return (wa.T @ absorb_input(t, wb)).reshape(wa.shape[1], wb.shape[1], *t.shape[2:])


def rebuild_tucker(t: Tensor, wa: Tensor, wb: Tensor) -> Tensor:
    """``tucker_weight``, in another order."""
    return tucker_weight(wa, wb, t)


def tucker_weight_from_conv(up: Tensor, down: Tensor, mid: Tensor) -> Tensor:
    """The same of convolutions: ``up`` (o, r, 1…), ``down`` (r, i, 1…), ``mid`` (r, r, k…)."""
    return tucker_weight(up.flatten(1).T, down.flatten(1), mid)


def add_scaled(base: Tensor, delta: Tensor, gamma: Factor = 1.0) -> Tensor:
    """``base`` + ``gamma``·``delta``."""
    return base + delta * gamma


def weight_decompose(
    weight: Tensor, dora_scale: Tensor, multiplier: Factor = 1.0, wd_on_out: bool = True
) -> Tensor:
    """V + m·(V·d/‖V‖ − V) for V = ``weight``: DoRA's lengths of outputs, or of input channels."""
    around = magnitude(dora_scale, weight, wd_on_out).around(Sum(()))
    change = around.delta(weight.flatten(1)).reshape(weight.shape)
    return weight + change * multiplier


def apply_dora_scale(org_weight: Tensor, rebuild: Tensor, dora_scale: Tensor, scale: Factor) -> Tensor:
    """W + m·(V·d/‖V‖ − W) for V = W + ``rebuild``, the lengths being of input channels."""
    around = magnitude(dora_scale, org_weight, False).around(Dense(rebuild.flatten(1)))
    change = around.delta(org_weight.flatten(1)).reshape(org_weight.shape)
    return org_weight + change * scale
