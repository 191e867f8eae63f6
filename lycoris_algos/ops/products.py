"""Products of two thin matrices, over a block of a weight's rows.

A product of few ranks is bound by memory, not by arithmetic. So on a CPU each thread makes the rows that it
finds in its own cache, and that an elementwise pass gives it afterwards. MKL shares the work out in other
ways, or not at all (of 320×640, for example).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import threads

#: Up to so many numbers of a weight, what is done for each block costs more than it saves.
FEW = 2**17
# Beyond so many it makes no difference who makes which row.
_MANY = 2**20


def mm_rows(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a (n, k)·b (k, c) into ``out`` (n, c)."""
    if not _shared(out):
        return torch.mm(a, b, out=out)
    torch.bmm(_shares(a), b.expand(threads(out.device), -1, -1), out=_shares(out))
    return out


def addmm_rows_(rows: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """rows (n, c) += alpha·a (n, k)·b (k, c), in place."""
    if _shared(rows):
        _shares(rows).baddbmm_(_shares(a), b.expand(threads(rows.device), -1, -1), alpha=alpha)
    else:
        rows.addmm_(a, b, alpha=alpha)


def _shared(rows: Tensor) -> bool:
    count = threads(rows.device)
    divides = count > 1 and rows.shape[0] % count == 0
    return divides and FEW < rows.numel() <= _MANY and rows.is_contiguous()


def _shares(rows: Tensor) -> Tensor:
    """(threads, n / threads, c)."""
    count = threads(rows.device)
    return rows.view(count, rows.shape[0] // count, rows.shape[1])
