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

# Bytes of one scratch block. On a CPU, of every thread: what one works on at a time stays in the cache of
# its core, and a small weight pays for the fresh pages of its scratch (measured from 0.25 to 8 MiB with one
# and two threads; see docs/benchmarks.md). On a GPU kernels want whole tensors, so the bound only keeps the
# scratch of the very largest layers small beside the layer.
_CPU_THREAD_BLOCK = 2**19
_GPU_BLOCK = 256 * 2**20


def matrix_view(weight: Tensor) -> Tensor | None:
    """``weight`` (o, …) as a matrix (o, ∏…) sharing its memory, or None where its strides forbid that.

    Channels-last convolutions are the usual case of None. A scalar becomes (1, 1), a vector (o, 1).
    """
    if weight.dim() == 2:
        return weight
    rows = weight.shape[0] if weight.dim() else 1
    try:
        return weight.view(rows, weight.numel() // max(rows, 1))
    except RuntimeError:
        return None


def rows_per_block(columns: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of ``columns`` numbers make one scratch block on ``device``; as many for each thread."""
    block = _CPU_THREAD_BLOCK if device.type == "cpu" else _GPU_BLOCK
    return max(1, block // max(1, columns * dtype.itemsize)) * threads(device)


def block_rows(count: int, columns: int, dtype: torch.dtype, device: torch.device, unit: int = 1) -> int:
    """How many of ``count`` rows to take at a time: as many as fit the cache, in whole ``unit``s.

    On a CPU all, where they are no more than two blocks: what is done for each block costs more than that.
    """
    fitting = rows_per_block(columns, dtype, device)
    if count <= fitting * (2 if device.type == "cpu" else 1):
        return count
    return min(count, max(unit, fitting // unit * unit))


def threads(device: torch.device) -> int:
    """Among how many threads PyTorch shares the work on a tensor there, as far as rows matter to it."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def row_blocks(rows: int, step: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of at most ``step`` rows that cover ``rows``.

    As few as that takes, and of about the same size: a short one at the end costs nearly as much as a whole
    one. All but the last have a multiple of ``unit`` rows, as ``step`` has.
    """
    count = -(-rows // step)
    size = -(-rows // (max(count, 1) * unit)) * unit
    for start in range(0, rows, size or 1):
        yield start, min(start + size, rows)


def stacked(pieces: Sequence[Tensor]) -> Tensor:
    """One weight (or bias) of the rows of all ``pieces``, in order; the only piece itself."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
