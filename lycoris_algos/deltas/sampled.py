"""Questions that only the elements of changes answer, asked of some rows: signs, and what rounding leaves.

A delta of a large model has billions of elements, and a share is as good from a part of them: blocks of rows,
spread evenly over a weight. A weight of few rows is looked at whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.rounding import moved
from ..structures import Structure
from ..text import Brief

#: So many rows of a weight are looked at, and all of one that has no more.
ROWS = 256
_BLOCK = 16


@dataclass(frozen=True)
class Survival(Brief):
    """What becomes of a change in a number type: shares of the weights that it would move.

    ``nearest`` of them really become another number when they are rounded to the nearest, ``stochastic`` of
    them on average when they are rounded at random. ``error`` is what rounding to the nearest adds or takes
    away, in parts of the change (both as Frobenius norms).
    """

    nearest: float
    stochastic: float
    error: float


def opposed(first: Structure, second: Structure, weight: Tensor | None = None) -> float | None:
    """The share of elements that the two changes move in opposite directions, of those that both move.

    Not simply a count: an element counts by the smaller of its two changes, so that the noise around zero of
    one does not outvote what the other means. None if they move nothing together.
    """
    against = total = 0.0
    for start, stop in _sample(first, second, weight=weight):
        one, other = first.rows(start, stop, weight), second.rows(start, stop, weight)
        common = torch.minimum(one.abs(), other.abs()).double()
        total += float(common.sum())
        against += float((common * (one.sign() * other.sign() < 0)).sum())
    return against / total if total else None


def survival(change: Structure, multiplier: float, weight: Tensor, dtype: torch.dtype) -> Survival | None:
    """What becomes of ``multiplier``·``change`` of ``weight`` (o, c) that is stored in ``dtype``.

    None if it changes nothing.
    """
    count, nearest, stochastic, lost, energy = 0, 0.0, 0.0, 0.0, 0.0
    for start, stop in _sample(change, weight=weight):
        delta = change.rows(start, stop, weight if change.needs_weight else None).float() * multiplier
        stored = weight[start:stop].to(dtype).float()
        rounded, chance = moved(stored, delta, dtype)
        wanted = delta != 0.0
        count += int(wanted.sum())
        nearest += float(((rounded != stored) & wanted).sum())
        stochastic += float(chance[wanted].double().sum())
        energy += float(delta.double().square().sum())
        lost += float((rounded - stored - delta).double().square().sum())
    if not count:
        return None
    return Survival(nearest / count, stochastic / count, (lost / energy) ** 0.5 if energy else 0.0)


def _sample(first: Structure, *others: Structure, weight: Tensor | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks that hold about ``ROWS`` rows, or all of a structure that has no more."""
    blocks = list(first.in_blocks(*others, weight=weight, most=_BLOCK))
    rows = blocks[-1][1] if blocks else 0
    if rows <= ROWS:
        yield from blocks
        return
    wanted = max(1, len(blocks) * ROWS // rows)
    yield from (blocks[(2 * number + 1) * len(blocks) // (2 * wanted)] for number in range(wanted))
