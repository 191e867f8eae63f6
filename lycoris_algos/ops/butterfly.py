"""Butterfly rotations: many stages of small blocks, with the rows regrouped between them.

Stage t of blocks of size b mixes rows 2^t·b/2 apart, together with b/2 neighbours (arXiv 2311.06243). Here a
block holds its b/2 neighbours on the near side first and those on the far side after them.

Blocks of one stage are small, so going through them stage by stage spends its time on regrouping rows. But
s stages in a row mix no more than 2^(s−1)·b rows: ``merge_stages`` multiplies them out to one stage of blocks
of that size, which costs as many operations (s = 2) or a few more, and moves the rows s times less often.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of a block of merged stages. Larger ones take more operations, smaller ones more passes.
_MERGED = 128


def merge_stages(rotations: Tensor) -> tuple[Tensor, int]:
    """(rotations (T', n', b', b'), span) that turn rows as ``rotations`` (T, n, b, b) do, in fewer stages.

    Each of the new ones spans as many of the old as blocks of 128 rows can hold, but two at least.
    """
    count, blocks, size, _ = rotations.shape
    span = min(count, max(2, (_MERGED // size).bit_length()))
    wide = size * 2 ** (span - 1)
    # A block of merged stages is what they make of the unit vectors of its rows.
    units = torch.eye(wide, dtype=rotations.dtype, device=rotations.device)
    merged, done = [], 0
    for first in _firsts(count, span):
        turned = _scattered(units.expand(blocks * size // wide, wide, wide), first, span)
        for stage in range(done, first + span):
            turned = _stage(turned, rotations[stage], stage, 1)
        merged.append(_gathered(turned, wide, first, span))
        done = first + span
    return torch.stack(merged), span


def turn(rows: Tensor, rotations: Tensor, stages: int, span: int, transposed: bool = False) -> Tensor:
    """``rows`` (o, c) turned by ``stages`` stages, given as rotations that span ``span`` of them each.

    ``transposed``: by the transpose of all of it, which goes through the stages in reverse.
    """
    steps = list(zip(rotations, _firsts(stages, span), strict=True))
    for rotation, first in reversed(steps) if transposed else steps:
        rows = _stage(rows, rotation.mT if transposed else rotation, first, span)
    return rows


def _firsts(stages: int, span: int) -> list[int]:
    """The stage that each rotation over ``span`` of them begins with; the last one may begin earlier."""
    return [min(first, stages - span) for first in range(0, stages, span)]


def _stage(rows: Tensor, rotation: Tensor, first: int, span: int) -> Tensor:
    """``rows`` (o, c) turned by ``rotation`` (n, b, b) of the ``span`` stages from ``first`` on."""
    turned = torch.bmm(rotation, _gathered(rows, rotation.shape[1], first, span))
    return _scattered(turned, first, span)


def _gathered(rows: Tensor, size: int, first: int, span: int) -> Tensor:
    """(n, size, c) of ``rows`` (o, c): the rows that ``span`` stages from ``first`` on mix, in blocks."""
    if first == 0:  # neighbours, and as many as there are: a single stage may be of odd blocks
        return rows.reshape(-1, size, rows.shape[1])
    half = size // 2**span
    apart = rows.reshape(-1, 2**span, 2**first, half, rows.shape[1])
    return apart.transpose(1, 2).reshape(-1, size, rows.shape[1])


def _scattered(blocks: Tensor, first: int, span: int) -> Tensor:
    """(o, c): the inverse of ``_gathered``."""
    _, size, columns = blocks.shape
    if first == 0:
        return blocks.reshape(-1, columns)
    together = blocks.reshape(-1, 2**first, 2**span, size // 2**span, columns)
    return together.transpose(1, 2).reshape(-1, columns)
