"""How two changes of one weight lie to each other: which way they point, and in which spaces.

Two changes that write to the same outputs or read the same inputs meet even where their elements do not. How
much of those spaces they share, each direction counted by its strength:

    outputs  ⟨A·Aᵀ, B·Bᵀ⟩ / (‖A·Aᵀ‖·‖B·Bᵀ‖)        inputs  ⟨Aᵀ·A, Bᵀ·B⟩ / (‖Aᵀ·A‖·‖Bᵀ·B‖)

1 for changes that differ by a factor only, 0 for spaces at right angles (linear CKA, arXiv 1905.00414). No
rank has to be chosen, and the algebra of the structures answers it: with ⟨A·Aᵀ, B·Bᵀ⟩ = ‖Aᵀ·B‖², Gram
matrices of factors for low rank, and the product over both factors for Kronecker products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..structures import Kronecker, Structure
from ..text import Brief


@dataclass(frozen=True)
class Alignment(Brief):
    """⟨A, B⟩, and the shares of the spaces of outputs and of inputs (0 to 1; 0 where one change is 0)."""

    inner: float
    outputs: float
    inputs: float


def alignment(first: Structure, second: Structure, weight: Tensor | None = None) -> Alignment:
    """Of two changes of ``weight`` (o, c), which is given where one depends on it."""
    inner = first.inner_product(second, weight)
    own = math.sqrt(max(0.0, _shared(first, first, weight)[0] * _shared(second, second, weight)[0]))
    outputs, inputs = _shared(first, second, weight)
    return Alignment(inner, outputs / own, inputs / own) if own > 0.0 else Alignment(inner, 0.0, 0.0)


def _shared(first: Structure, second: Structure, weight: Tensor | None) -> tuple[float, float]:
    """(‖Aᵀ·B‖², ‖A·Bᵀ‖²)."""
    if isinstance(first, Kronecker) and isinstance(second, Kronecker) and first.multiplies_with(second):
        whole = _shared(first.first, second.first, None)
        part = _shared(first.second, second.second, None)
        scale = (first.scale * second.scale) ** 2
        return scale * whole[0] * part[0], scale * whole[1] * part[1]
    own, others = first.paying_factors(weight), second.paying_factors(weight)
    if own is not None and others is not None:
        (up, down), (other_up, other_down) = own, others
        return (
            _weighted(_product(up.T, other_up), _product(down, down.T), _product(other_down, other_down.T)),
            _weighted(_product(down, other_down.T), _product(up.T, up), _product(other_up.T, other_up)),
        )
    if others is not None:
        return _against_factors(first.delta(weight), *others)
    if own is not None:
        return _against_factors(second.delta(weight), *own)
    return _dense(first.delta(weight), second.delta(weight))


def _against_factors(matrix: Tensor, up: Tensor, down: Tensor) -> tuple[float, float]:
    """The same for A and B = up·down: ‖(Aᵀ·up)·down‖² and ‖(A·downᵀ)·upᵀ‖²."""
    outputs, inputs = matrix.T @ up, matrix @ down.T
    return (
        float((_product(outputs.T, outputs) * _product(down, down.T)).sum()),
        float((_product(inputs.T, inputs) * _product(up.T, up)).sum()),
    )


def _dense(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The same for two matrices, by products of the size of their smaller side only."""
    if a.shape[0] > a.shape[1]:
        inputs, outputs = _dense(a.T, b.T)
        return outputs, inputs
    grams = (a @ a.T).double() * (b @ b.T).double()
    return float(grams.sum()), float((a @ b.T).double().square().sum())


def _weighted(middle: Tensor, left: Tensor, right: Tensor) -> float:
    """tr(middleᵀ·left·middle·right) for symmetric ``left`` and ``right``."""
    return float(((left @ middle) * (middle @ right)).sum())


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a.double() @ b.double()


def effective_rank(values: Tensor) -> float:
    """How many singular ``values`` (k,) count: e to their entropy (Roy and Vetterli, EUSIPCO 2007).

    k for k equal ones, 1 for one alone, 0 for none.
    """
    total = float(values.double().sum())
    if total == 0.0:
        return 0.0
    shares = values.double() / total
    return math.exp(float(torch.special.entr(shares).sum()))
