"""Combines several adapter sets into one, on their deltas (weight changes).

    plan = plan_combine([StackEntry(a), StackEntry(b, 0.7)], CombineOptions("ties", density=0.3))
    print(plan)
    combined = run_combine(plan)          # .adapters, .report()

One room per concern: ``methods`` the formulas, ``options`` what a user chooses, ``sources`` which layers
mean the same, ``plan`` and ``run`` the two halves of the work, ``recipe`` the metadata, ``report`` the
words. What a delta is, and how one is measured, is in ../../deltas.
"""

from __future__ import annotations

from ...ops.ranks import RankKind, RankRule
from .methods import METHODS, PARAMETERS, Parameter, explained
from .options import SAME, CombineOptions, outputs
from .plan import CombinePlan, plan_combine
from .report import Combined
from .run import run_combine

__all__ = [
    "METHODS",
    "PARAMETERS",
    "SAME",
    "CombineOptions",
    "CombinePlan",
    "Combined",
    "Parameter",
    "RankKind",
    "RankRule",
    "explained",
    "outputs",
    "plan_combine",
    "run_combine",
]
