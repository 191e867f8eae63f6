"""LoKr: (w1, w1a, w1b, w2, w2a, w2b, t)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...adapters import Algorithm
from ._stored import delta, forward, started, stored, with_output

_SUFFIXES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


def weight_gen(
    org_weight: Tensor,
    rank: int = 4,
    tucker: bool = True,
    factor: int = -1,
    decompose_both: bool = False,
    full_matrix: bool = False,
    unbalanced_factorization: bool = False,
) -> tuple[Tensor | None, ...]:
    """(w1, w1a, w1b, w2, w2a, w2b, t) that training of ``org_weight`` starts from; None for what is not."""
    made = started(
        "lokr",
        _SUFFIXES,
        org_weight,
        lora_dim=rank,
        use_tucker=tucker,
        factor=factor,
        decompose_both=decompose_both,
        full_matrix=full_matrix,
        unbalanced_factorization=unbalanced_factorization,
    )
    *rest, w2_b, t2 = made
    if w2_b is not None and t2 is None and org_weight.dim() > 2:
        w2_b = w2_b.reshape(
            w2_b.shape[0], -1, *org_weight.shape[2:]
        )  # so that the tensors alone tell the kernel
    return (*rest, w2_b, t2)


def diff_weight(*weights: Tensor | None, gamma: float = 1.0, backend: str | None = None) -> Tensor:
    """``gamma``/rank·ΔW of (w1, w1a, w1b, w2, w2a, w2b, t); of whole w1 and w2, ΔW."""
    lokr = stored("lokr", _SUFFIXES, weights, alpha=gamma)
    return delta(lokr, _shape(lokr, weights))


def bypass_forward_diff(
    x: Tensor,
    *given: Any,
    gamma: float = 1.0,
    extra_args: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> Tensor:
    """That on ``x``. ``given``: the layer's output (not needed), then the seven of ``diff_weight``."""
    weights = with_output(7, given)[1]
    lokr = stored("lokr", _SUFFIXES, weights, alpha=gamma)
    return forward(lokr, x, _shape(lokr, weights), extra_args or {})


def _shape(lokr: Algorithm, weights: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    w2_b = weights[5]
    rows, columns = lokr.matrix_shape
    assert rows is not None
    assert columns is not None
    if lokr.weight_shape is not None:
        return lokr.weight_shape
    kernel = () if w2_b is None else w2_b.shape[2:]
    return rows, columns // kernel.numel() if kernel else columns, *kernel


def kron_bypass(
    h: Tensor,
    w1: Tensor | None,
    w1a: Tensor | None,
    w1b: Tensor | None,
    w2: Tensor | None,
    w2a: Tensor | None,
    w2b: Tensor | None,
    t: Tensor | None = None,
    scale: float = 1.0,
    extra_args: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> Tensor:
    """``scale``·(w1 ⊗ w2) on ``h``."""
    weights = (w1, w1a, w1b, w2, w2a, w2b, t)
    lokr = stored("lokr", _SUFFIXES, weights, scale=scale)
    return forward(lokr, h, _shape(lokr, weights), extra_args or {})
