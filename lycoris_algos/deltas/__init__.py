"""Weight changes (ΔW) of single layers: their cheapest exact form, sums, errors, sizes for a budget."""

from __future__ import annotations

from .budget import Offer, allocate, kept_energy, offers_of_ranks, reach, total_size
from .forms import change_of, factors_of, gram, weighted_sum
from .layerwise import OUT_OF_MEMORY, Layerwise, computing_device
from .measure import Difference, difference
from .outcome import (
    Outcome,
    comparison_notes,
    fallback_notes,
    family_lines,
    forms,
    percent,
    retained,
    worst_error,
)

__all__ = [
    "OUT_OF_MEMORY",
    "Difference",
    "Layerwise",
    "Offer",
    "Outcome",
    "allocate",
    "change_of",
    "comparison_notes",
    "computing_device",
    "difference",
    "factors_of",
    "fallback_notes",
    "family_lines",
    "forms",
    "gram",
    "kept_energy",
    "offers_of_ranks",
    "percent",
    "reach",
    "retained",
    "total_size",
    "weighted_sum",
    "worst_error",
]
