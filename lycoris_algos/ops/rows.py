"""A weight seen as a matrix of rows, and how many rows to take at a time.

Most updates touch every element of a large weight once, so they cost what moving it through the caches
costs. Two decisions follow. Work that needs scratch memory goes in blocks of rows whose scratch stays in
the cache, because a fresh buffer of the weight's size costs more in page faults than the arithmetic does.
And a block is never made of less than one row, so the algorithms can rely on whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Bytes of one scratch block. On a CPU: large enough that a matrix product over it runs at full speed on all
# cores, and no larger, because a small weight pays for the fresh pages of its scratch (measured from 0.25 to
# 8 MiB; see docs/benchmarks.md). On a GPU kernels want whole tensors, so the bound only keeps the scratch of
# the very largest layers small beside the layer.
_CPU_BLOCK = 2**20
_GPU_BLOCK = 256 * 2**20


def matrix_view(weight: Tensor) -> Tensor | None:
    """``weight`` (o, …) as a matrix (o, ∏…) sharing its memory, or None where its strides forbid that.

    Channels-last convolutions are the usual case of None. A scalar becomes (1, 1), a vector (o, 1).
    """
    rows = weight.shape[0] if weight.dim() else 1
    try:
        return weight.view(rows, weight.numel() // max(rows, 1))
    except RuntimeError:
        return None


def rows_per_block(columns: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of ``columns`` numbers make one scratch block on ``device``; at least 1."""
    block = _CPU_BLOCK if device.type == "cpu" else _GPU_BLOCK
    return max(1, block // max(1, columns * dtype.itemsize))


def row_blocks(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of at most ``step`` rows that cover ``rows``."""
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def stacked(pieces: Sequence[Tensor]) -> Tensor:
    """One weight (or bias) of the rows of all ``pieces``, in order; the only piece itself."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
