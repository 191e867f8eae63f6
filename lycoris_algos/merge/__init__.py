"""Adapters merged: with each other (``combine``). Every job is a plan, which can be printed, and a run."""

from __future__ import annotations

from .combine import BaseWeights, Combined, CombineOptions, CombinePlan, Source, plan_combine, run_combine

__all__ = [
    "BaseWeights",
    "CombineOptions",
    "CombinePlan",
    "Combined",
    "Source",
    "plan_combine",
    "run_combine",
]
