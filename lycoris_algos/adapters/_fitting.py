"""The argument and the result of ``fit``, which stores a given weight change as some algorithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ..ops.lowrank import leading_values
from ..ops.ranks import RankKind, RankRule
from ..structures import Structure
from ..text import Brief

if TYPE_CHECKING:
    from ._base import Algorithm, Component, Magnitude


@dataclass(frozen=True, eq=False)
class FitRequest(Brief):
    """``change`` is to be stored: a ready structure that does not depend on W.

    ``shape`` is that of the weight afterwards, None where nothing tells its kernel. ``rule`` says how many
    ranks; where it is a budget, its value is how many the budget has room for, each as large as the form's
    ``numbers_per_rank``. ``like`` is an algorithm whose sizes are to be kept, and ``factor`` LyCORIS' size
    of a LoKr's first factor (−1 its default, 0 free). ``tucker`` asks for Tucker kernels of convolutions.
    ``weight`` is W as a matrix, for what is stored relative to it. ``sizes`` are those of a ``Price`` and
    count in the place of the rule. ``most`` is how many ranks are priced, 0 for all; with ``rivals`` what
    cannot compete with a LoRA need not be priced.
    """

    change: Structure
    shape: Sequence[int] | None
    rule: RankRule
    like: Algorithm | None = None
    factor: int = 0
    tucker: bool = False
    weight: Tensor | None = None
    sizes: tuple[int, ...] = ()
    most: int = 0
    rivals: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(o, c) of the change."""
        rows, columns = self.change.size
        assert rows is not None
        assert columns is not None
        return rows, columns

    @property
    def kernel(self) -> int:
        """How many positions the kernel of the weight has; 1 where nothing tells."""
        return 1 if self.shape is None else math.prod(self.shape[2:])

    def priced(self, price: Price) -> FitRequest:
        """The same for the size that ``price`` names."""
        ranks = price.sizes[-1] if price.sizes else 0
        return replace(self, rule=RankRule(RankKind.FIXED, ranks), sizes=price.sizes)

    @cached_property
    def values(self) -> Tensor:
        """The singular values of the change, the largest first: the first ``most`` at least."""
        return _leading(self.change, self.most)

    @cached_property
    def energy(self) -> float:
        """The sum of the squares of the change."""
        return self.change.norm() ** 2


@dataclass(frozen=True, eq=False)
class Fitted(Brief):
    """What was fitted, its rank if any, and the energy that a LoRA of this size would keep (LoKr, LoHa).

    ``magnitude`` is stored beside it, where it is a DoRA.
    """

    stored: Component
    rank: int | None = None
    lora_energy: float | None = None
    magnitude: Magnitude | None = None


@dataclass(frozen=True)
class Price(Brief):
    """A size in which a change can be stored: numbers that it takes, ΣD² of them that it keeps.

    ``sizes`` tell ``fit`` which. What is kept may be a bound that the fit does not fall below.
    """

    numbers: int
    kept: float
    sizes: tuple[int, ...] = ()


class Fits(Protocol):
    """A form in which a change can be stored."""

    def fit(self, request: FitRequest) -> Fitted:
        """The nearest to the change that this form can hold."""

    def prices(self, request: FitRequest) -> list[Price]:
        """The sizes that the change may be stored in, with what each keeps."""


def lora_energy(request: FitRequest, numbers: int) -> float:
    """The share of the energy that a LoRA of so many numbers keeps of the change of ``request``."""
    ranks = numbers // sum(request.size)
    if not request.energy:
        return 1.0
    if not ranks:
        return 0.0
    values = _leading(request.change, ranks)
    return min(1.0, float(values.double().square().sum()) / request.energy)


def _leading(change: Structure, most: int) -> Tensor:
    """The ``most`` largest singular values of ``change`` (0: all of them)."""
    if most and not change.exact_rank:
        return leading_values(change.delta(), most)
    values = change.spectrum()
    return values[:most] if most else values
