"""A change stored as one of the algorithms: exactly where that is asked for, else as near as its ranks allow.

LoRA: singular values, by QR where the change has factors. LoKr: the nearest Kronecker product, w2 cut to a
rank where that is smaller. LoHa: alternating least squares. Which w1 a LoKr gets is a search over LyCORIS'
own sizes for what keeps most in the bytes that a LoRA of the wanted rank would take, since a file holds a
single Kronecker term and its shape is the only choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters import LayerAdapter
from ...adapters.full import FullWeight
from ...adapters.loha import LoHa
from ...adapters.lokr import LoKr
from ...adapters.lora import LoRA
from ...ops.kronecker import nearest_kronecker
from ...ops.lowrank import gram_spectrum, gram_svd, leading_svd, product_svd
from .change import Change, Factors
from .options import RankKind, RankRule
from .ranks import choose


@dataclass(frozen=True, eq=False)
class Fitted:
    """A stored form, its rank where it has one, and what a LoRA of as many bytes would keep (LoKr, LoHa)."""

    adapter: LayerAdapter
    rank: int | None = None
    lora_energy: float | None = None


def spectrum(change: Change) -> Tensor:
    """The singular values of ``change``, the largest first, on the CPU."""
    if isinstance(change, Factors):
        return product_svd(change.up, change.down)[1].cpu()
    return gram_spectrum(change.dense()).cpu()


def fit_full(change: Change, shape: Sequence[int]) -> Fitted:
    """The whole change, in ``shape``."""
    return Fitted(LayerAdapter(parts=(FullWeight(change.dense().reshape(tuple(shape))),)))


def fit_lora(change: Change, shape: Sequence[int] | None, rule: RankRule) -> Fitted:
    """The LoRA whose rank ``rule`` asks for; exact for rule EXACT."""
    up, down = _factors(change, rule)
    return Fitted(LayerAdapter(core=LoRA.of(up, down, shape)), down.shape[0])


def _factors(change: Change, rule: RankRule) -> tuple[Tensor, Tensor]:
    if isinstance(change, Factors):
        exact = rule.kind is RankKind.EXACT and change.down.shape[0] <= min(change.size)
        if exact or (rule.kind is RankKind.FIXED and change.down.shape[0] <= rule.value):
            return change.up, change.down
        u, s, vh = product_svd(change.up, change.down)
    elif rule.kind is RankKind.FIXED:
        u, s, vh = leading_svd(change.dense(), int(rule.value))
    else:
        u, s, vh = gram_svd(change.dense(), min(change.size))
    rank = choose(s, rule)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vh[:rank] * root[:, None]


# ---- LoKr -----------------------------------------------------------------------------------------------


def fit_lokr(
    change: Change,
    shape: Sequence[int] | None,
    rule: RankRule,
    first: tuple[int, int] | None,
    factor: int,
) -> Fitted:
    """The nearest LoKr with a w1 of shape ``first``, of LyCORIS' ``factor``, or (0) of the best size.

    With a given size, ``rule`` is about the ranks of w2. Without, it is about those of a LoRA, whose bytes
    the LoKr may take; that of rule BUDGET is its value here.
    """
    matrix = change.dense()
    rows, columns = change.size
    inputs = shape[1] if shape is not None else columns
    values = gram_spectrum(matrix)
    energies = values.square()
    ranks = int(rule.value) if rule.kind is RankKind.BUDGET else choose(values, rule)
    allowed = ranks * (rows + columns)
    if first is None and factor:
        first = (_factorised(rows, factor), _factorised(inputs, factor))
    best: tuple[float, LoKr] | None = None
    for size in [first] if first is not None else _sizes(rows, inputs):
        w1, w2 = nearest_kronecker(matrix, *size)
        s = gram_spectrum(w2)
        if first is None or rule.kind is RankKind.BUDGET:
            rank = min(s.numel(), (allowed - w1.numel()) // sum(w2.shape))
            rank = s.numel() if w2.numel() + w1.numel() <= allowed else max(0, rank)
        else:
            rank = choose(s, rule)
        if rank < 1:
            continue
        kept = float(w1.square().sum()) * float(s[:rank].square().sum())
        if best is None or kept > best[0]:
            best = kept, LoKr.of(w1, w2, shape, rank)
    if best is None:  # not even w1 and one rank fit: the smallest there is
        w1, w2 = nearest_kronecker(matrix, *_smallest(rows, inputs))
        best = 0.0, LoKr.of(w1, w2, shape, 1)
    numbers = sum(value.numel() for _, value in best[1].tensors())
    return Fitted(LayerAdapter(core=best[1]), best[1].rank, _lora_energy(energies, numbers, rows + columns))


def _sizes(rows: int, inputs: int) -> Iterator[tuple[int, int]]:
    found = {(_factorised(rows, f), _factorised(inputs, f)): None for f in (-1, 2, 4, 8, 16, 32)}
    yield from found


def _smallest(rows: int, inputs: int) -> tuple[int, int]:
    return _factorised(rows, -1), _factorised(inputs, -1)


def _factorised(size: int, factor: int) -> int:
    """The largest divisor of ``size`` up to ``factor``, or up to its root where the factor is −1.

    As LyCORIS splits a dimension: ``factor`` itself where it divides, and never above the root otherwise.
    """
    if factor > 0 and size % factor == 0:
        return factor
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    return next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)


# ---- LoHa -----------------------------------------------------------------------------------------------


def fit_loha(change: Change, rule: RankRule) -> Fitted:
    """A LoHa near the change. A fixed rank is its own; every other rule is about a LoRA of as many bytes.

    Its rank is half of that LoRA's then; for a share of energy it is doubled until the share is reached or
    two factors would be as large as the change.
    """
    matrix = change.dense()
    rows, columns = change.size
    values = gram_spectrum(matrix)
    energies = values.square()
    if rule.kind is RankKind.FIXED:
        rank = int(rule.value)
    else:
        rank = max(1, choose(values, rule) // 2)
    while True:
        rank = min(rank, rows, columns)
        core = LoHa.approximate(matrix, rank)
        lost = (matrix - core.delta((rows, columns)).to(matrix)).double().square().sum()
        kept = 1 - float(lost) / max(float(energies.sum()), 1e-300)
        if (
            rule.kind is not RankKind.ENERGY
            or kept >= rule.value
            or 4 * rank * (rows + columns) > rows * columns
        ):
            break
        rank *= 2
    numbers = 2 * rank * (rows + columns)
    return Fitted(LayerAdapter(core=core), rank, _lora_energy(energies, numbers, rows + columns))


def _lora_energy(energies: Tensor, numbers: int, per_rank: int) -> float:
    """The share of energy that a LoRA of so many numbers keeps."""
    total = float(energies.sum())
    return float(energies[: numbers // per_rank].sum()) / total if total else 1.0


def without_memory(device: torch.device, shape: Sequence[int]) -> Tensor:
    """A weight of ``shape`` on ``device`` without memory, for deltas that only look at shape and device."""
    return torch.zeros((), device=device).expand(tuple(shape))
