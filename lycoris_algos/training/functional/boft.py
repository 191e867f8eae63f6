"""BOFT: (oft_blocks, rescale)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._types import Factor
from ...adapters import Algorithm
from ._rotating import delta_of, forward_of
from ._stored import started, stored, with_output

_SUFFIXES = ("oft_blocks", "rescale")


def weight_gen(
    org_weight: Tensor, max_block_size: int, boft_m: int = -1, rescale: bool = False
) -> tuple[Tensor | None, ...]:
    """(oft_blocks, rescale or None) that training of ``org_weight`` starts from, up to ``boft_m`` stages."""
    blocks, own = started("boft", _SUFFIXES, org_weight, lora_dim=max_block_size, rescaled=rescale)
    assert blocks is not None
    return blocks if boft_m < 0 else blocks[:boft_m], own


def diff_weight(
    org_weight: Tensor,
    *weights: Tensor | None,
    constraint: float | None = None,
    scale: Factor = 1.0,
    backend: str | None = None,
) -> Tensor:
    """``scale``·ΔW(``org_weight``) of (oft_blocks, rescale). ``constraint`` as in diag_oft.py."""
    return delta_of(_stored(weights, constraint), org_weight) * scale


def bypass_forward_diff(
    x: Tensor,
    *given: Any,
    constraint: float | None = None,
    need_transpose: bool = False,
    scale: Factor = 1.0,
    backend: str | None = None,
) -> Tensor:
    """What that adds to a layer's output ``x``. ``given``: (oft_blocks, rescale); else as in diag_oft.py."""
    output, weights = with_output(2, given)
    change = forward_of(_stored(weights, constraint), x if output is None else output, need_transpose)
    return change * scale


def _stored(weights: tuple[Tensor | None, ...], constraint: float | None) -> Algorithm:
    blocks = weights[0]
    assert blocks is not None
    return stored("boft", _SUFFIXES, weights, alpha=(constraint or 0.0) / (blocks.shape[1] * blocks.shape[2]))
