"""Changes (ΔW) of single weights: cheapest exact form, sums, comparisons, errors, sizes for a budget."""

from __future__ import annotations

from .alignment import Alignment, alignment, effective_rank
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
from .sampled import Survival, opposed, survival

__all__ = [
    "OUT_OF_MEMORY",
    "Alignment",
    "Difference",
    "Layerwise",
    "Offer",
    "Outcome",
    "Survival",
    "alignment",
    "allocate",
    "change_of",
    "comparison_notes",
    "computing_device",
    "difference",
    "effective_rank",
    "factors_of",
    "fallback_notes",
    "family_lines",
    "forms",
    "gram",
    "kept_energy",
    "offers_of_ranks",
    "opposed",
    "percent",
    "reach",
    "retained",
    "survival",
    "total_size",
    "weighted_sum",
    "worst_error",
]
