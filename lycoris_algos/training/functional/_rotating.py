"""What rotations of outputs do: to a weight, and to an output that is known already."""

from __future__ import annotations

from torch import Tensor

from ...adapters import Algorithm
from ._stored import delta, forward


def delta_of(algorithm: Algorithm, weight: Tensor) -> Tensor:
    """ΔW(W)."""
    return delta(algorithm, weight.shape, weight)


def forward_of(algorithm: Algorithm, output: Tensor, channels_second: bool) -> Tensor:
    """What ΔW(W) adds to ``output``, whose channels are its last axis or its second."""
    kernel = (1,) * (output.dim() - 2) if channels_second else ()
    rows, _ = algorithm.matrix_shape
    assert rows is not None
    return forward(algorithm, output, (rows, 1, *kernel), {}, output)
