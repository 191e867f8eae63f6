"""Adapters merged: with each other (``combine``), or into a checkpoint (``bake``).

Every job is a plan, which can be printed, and a run.
"""

from __future__ import annotations

from .bake import BakePlan, BakeResult, bake_report, plan_bake, plan_report, run_bake
from .combine import Combined, CombineOptions, CombinePlan, plan_combine, run_combine

__all__ = [
    "BakePlan",
    "BakeResult",
    "CombineOptions",
    "CombinePlan",
    "Combined",
    "bake_report",
    "plan_bake",
    "plan_combine",
    "plan_report",
    "run_bake",
    "run_combine",
]
