"""Weight changes (ΔW) of single layers: their cheapest exact form, sums, errors, ranks for a budget."""

from __future__ import annotations

from .budget import Demand, allocate
from .forms import change_of, factors_of, gram, weighted_sum
from .measure import Difference, difference

__all__ = [
    "Demand",
    "Difference",
    "allocate",
    "change_of",
    "difference",
    "factors_of",
    "gram",
    "weighted_sum",
]
