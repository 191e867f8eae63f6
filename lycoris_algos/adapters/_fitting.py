"""The argument and the result of ``fit``, which stores a given weight change as some algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..ops.ranks import RankRule
from ..structures import Structure
from ..text import Brief

if TYPE_CHECKING:
    from ._base import Algorithm, Component


@dataclass(frozen=True, eq=False)
class FitRequest(Brief):
    """``change`` is to be stored: a ready structure that does not depend on W.

    ``shape`` is that of the weight afterwards, None where nothing tells its kernel. ``rule`` says how many
    ranks; where it is a budget, its value is how many the budget has room for, each as large as the form's
    ``numbers_per_rank``. ``like`` is an algorithm whose sizes are to be kept, and ``factor`` LyCORIS' size
    of a LoKr's first factor (−1 its default, 0 free).
    """

    change: Structure
    shape: Sequence[int] | None
    rule: RankRule
    like: Algorithm | None = None
    factor: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(o, c) of the change."""
        rows, columns = self.change.size
        assert rows is not None
        assert columns is not None
        return rows, columns


@dataclass(frozen=True, eq=False)
class Fitted(Brief):
    """What was fitted, its rank if any, and the energy that a LoRA of this size would keep (LoKr, LoHa)."""

    stored: Component
    rank: int | None = None
    lora_energy: float | None = None


def lora_energy(energies: Tensor, numbers: int, per_rank: int) -> float:
    """The share of ``energies`` (squared singular values) that a LoRA of so many numbers keeps."""
    total = float(energies.sum())
    return float(energies[: numbers // per_rank].sum()) / total if total else 1.0
