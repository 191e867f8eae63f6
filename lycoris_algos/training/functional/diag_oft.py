"""Diag-OFT: (oft_blocks, rescale)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...adapters import Algorithm
from ._rotating import delta_of, forward_of
from ._stored import started, stored, with_output

_SUFFIXES = ("oft_blocks", "rescale")


def weight_gen(
    org_weight: Tensor, max_block_size: int = -1, rescale: bool = False
) -> tuple[Tensor | None, ...]:
    """(oft_blocks, rescale or None) that training of ``org_weight`` starts from."""
    return started("oft", _SUFFIXES, org_weight, lora_dim=max_block_size, rescaled=rescale)


def diff_weight(
    org_weight: Tensor, *weights: Tensor | None, constraint: float | None = None, backend: str | None = None
) -> Tensor:
    """ΔW(``org_weight``) of (oft_blocks, rescale). ``constraint`` is the largest norm of B − Bᵀ; 0: any."""
    return delta_of(_stored(weights, constraint), org_weight)


def bypass_forward_diff(
    x: Tensor,
    *given: Any,
    constraint: float | None = None,
    need_transpose: bool = False,
    backend: str | None = None,
) -> Tensor:
    """What that adds to a layer's output. ``given``: the output, then (oft_blocks, rescale).

    ``need_transpose``: the channels are the second axis, as those of a convolution. Without an output among
    ``given``, ``x`` is the output.
    """
    output, weights = with_output(2, given)
    return forward_of(_stored(weights, constraint), x if output is None else output, need_transpose)


def _stored(weights: tuple[Tensor | None, ...], constraint: float | None) -> Algorithm:
    blocks = weights[0]
    assert blocks is not None
    return stored("oft", _SUFFIXES, weights, alpha=(constraint or 0.0) / (blocks.shape[0] * blocks.shape[1]))
