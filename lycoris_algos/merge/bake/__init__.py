"""Bakes adapters into a checkpoint: a plan from headers alone, then a streamed run that checks its result."""

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
