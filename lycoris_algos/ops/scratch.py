"""Scratch buffers that are reused.

Systems hand out large buffers as fresh pages, and touching those for the first time costs more than the
arithmetic that they are for. So the blocks that weights are worked on in come from a few buffers that stay,
on the CPU, of each thread its own. On a GPU PyTorch keeps freed memory itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Buffers that stay: as many as are ever in use at once (a block, DoRA's copy of it, the products for it).
_KEPT = 3
# Larger ones do not stay, in bytes for each of PyTorch's threads: two copies of the largest weight that is
# dealt with in one block (see ``rows``) do.
_LARGEST = 2**21


class _Free(threading.local):
    """The buffers of one thread that nobody uses now."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []


_FREE = _Free()


@contextmanager
def scratch(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """An uninitialised tensor of ``shape``, to be used inside the ``with`` block only."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or size > _LARGEST * torch.get_num_threads():
        yield torch.empty(shape, dtype=dtype, device=device)
        return
    free = _FREE.buffers
    buffer = free.pop() if free else None
    if buffer is None or buffer.numel() < size:
        # A tensor of inference mode (in which ComfyUI runs nodes) could not be used outside of it.
        with torch.inference_mode(False):
            buffer = torch.empty(size, dtype=torch.uint8)
    try:
        yield buffer[:size].view(dtype).view(shape)
    finally:
        if len(free) < _KEPT:
            free.append(buffer)
