"""Setting the size of the blocks of rows that weights are worked on in, to try the edges of them."""

from __future__ import annotations

import pytest

from lycoris_algos.ops import products, rows
from lycoris_algos.structures import blocks, hadamard


def set_blocks(patch: pytest.MonkeyPatch, size: int, threads: int = 1) -> None:
    """Makes a block on a CPU ``size`` bytes for each of ``threads`` threads, whatever PyTorch has."""
    patch.setattr(rows, "_CPU_THREAD_BLOCK", size)
    for module in (rows, products, blocks, hadamard):
        patch.setattr(module, "threads", lambda device: threads)
    for module in (products, hadamard):
        patch.setattr(module, "FEW", 0)
