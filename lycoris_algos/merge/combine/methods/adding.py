"""Merge methods that add: the weighted sum and the average."""

from __future__ import annotations

from collections.abc import Sequence

from ._registry import Kind, method


@method("sum", Kind.WEIGHTS, "What the stack does when it is applied.", like_stack=True)
def weighted_sum(weights: Sequence[float], present: Sequence[int]) -> list[float]:
    """D = Σ wᵢDᵢ."""
    return [weights[index] for index in present]


@method(
    "average",
    Kind.WEIGHTS,
    "The sum, divided by the sum of the strengths. A file that lacks a layer counts as no change.",
)
def average(weights: Sequence[float], present: Sequence[int]) -> list[float]:
    """D = Σ wᵢDᵢ / Σ|w|, the latter over all adapters."""
    total = sum(abs(w) for w in weights)
    return [weights[index] / total if total else 0.0 for index in present]
