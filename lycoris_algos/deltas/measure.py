"""The error of a stored change against the wanted one, by blocks of rows; neither is formed whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.rows import row_blocks, rows_per_block
from ..structures import Structure


@dataclass(frozen=True)
class Difference:
    """ΣD², Σ(D − D̂)², max|D| and max|D − D̂| of a wanted D and what was got, D̂."""

    energy: float
    lost: float
    largest: float
    error: float


def difference(wanted: Structure, got: Structure | None) -> Difference:
    """``got`` (None: nothing) against ``wanted``. Neither depends on W, and both are ready in float32."""
    rows, columns = wanted.size
    assert rows is not None
    assert columns is not None
    device = next(wanted.tensors()).device
    energy = lost = largest = error = 0.0
    for start, stop in row_blocks(rows, rows_per_block(columns, torch.float32, device)):
        block = wanted.rows(start, stop).float()
        squares, largest_here = _size(block)
        energy, largest = energy + squares, max(largest, largest_here)
        if got is not None:
            got.add_rows_(block, start, -1.0, block)
        squares, error_here = _size(block)
        lost, error = lost + squares, max(error, error_here)
    return Difference(energy, lost, largest, error)


def _size(block: Tensor) -> tuple[float, float]:
    """(Σx², max|x|) in two passes without a temporary."""
    low, high = torch.aminmax(block)
    norm = float(torch.linalg.vector_norm(block))
    return norm * norm, max(-float(low), float(high))
