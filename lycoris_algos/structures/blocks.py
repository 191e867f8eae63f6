"""Cuts the rows of a weight into the blocks that are worked on one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.rows import block_rows, row_blocks, threads


def row_ranges(
    count: int, columns: int, dtype: torch.dtype, device: torch.device, unit: int
) -> list[tuple[int, int]]:
    """(first, last) of blocks of ``count`` rows in whole ``unit``s, alike for all threads; 0: all at once."""
    shared = math.lcm(threads(device), unit) if unit else count
    return list(row_blocks(count, block_rows(count, columns, dtype, device, shared), shared))


def blocks_of(rows: Tensor, unit: int) -> list[tuple[int, int]]:
    """The same for ``rows`` (n, c)."""
    return row_ranges(rows.shape[0], rows.shape[1], rows.dtype, rows.device, unit)


def longest(blocks: Sequence[tuple[int, int]]) -> int:
    """The rows of the highest block."""
    return max(last - first for first, last in blocks)
