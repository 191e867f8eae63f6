"""Adapters into a checkpoint: a plan made from headers alone, and a run that streams it and proves it."""

from .plan import BakePlan, plan_bake
from .report import bake_report, plan_report
from .run import BakeResult, run_bake

__all__ = [
    "BakePlan",
    "BakeResult",
    "bake_report",
    "plan_bake",
    "plan_report",
    "run_bake",
]
