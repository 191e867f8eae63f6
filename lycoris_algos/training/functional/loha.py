"""LoHa: (w1d, w1u, w2d, w2u, t1, t2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..._types import Factor
from ...adapters import Algorithm
from ._stored import delta, forward, started, stored, with_output

_SUFFIXES = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")


def weight_gen(org_weight: Tensor, rank: int = 4, tucker: bool = True) -> tuple[Tensor | None, ...]:
    """(w1d, w1u, w2d, w2u, t1, t2) that training of ``org_weight`` starts from; t1, t2 for kernels."""
    made = started("loha", _SUFFIXES, org_weight, lora_dim=rank, use_tucker=tucker)
    kernel = org_weight.shape[1:]
    if made[4] is not None or len(kernel) == 1:
        return made
    # In the weight's shape, so that the tensors alone tell it.
    w1d, w1u, w2d, w2u, *rest = made
    assert w1d is not None
    assert w2d is not None
    return (w1d.reshape(-1, *kernel), w1u, w2d.reshape(-1, *kernel), w2u, *rest)


def diff_weight(*weights: Tensor | None, gamma: Factor = 1.0, backend: str | None = None) -> Tensor:
    """``gamma``·ΔW of (w1d, w1u, w2d, w2u, t1, t2). ``backend`` is there for LyCORIS' sake."""
    loha = stored("loha", _SUFFIXES, weights)
    return delta(loha, _shape(loha), gamma=gamma)


def bypass_forward_diff(
    x: Tensor,
    *given: Any,
    gamma: Factor = 1.0,
    extra_args: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> Tensor:
    """``gamma``·ΔW on ``x``. ``given``: the layer's output (not needed), then the six of ``diff_weight``."""
    loha = stored("loha", _SUFFIXES, with_output(6, given)[1])
    return forward(loha, x, _shape(loha), extra_args or {}, gamma=gamma)


def _shape(loha: Algorithm) -> tuple[int, ...]:
    rows, columns = loha.matrix_shape
    assert rows is not None
    assert columns is not None
    return loha.weight_shape or (rows, columns)
