"""Several adapter sets into one, on their deltas: how (options), what goes together (sources), by which way.

    plan = plan_combine([StackEntry(a), StackEntry(b, 0.7)], CombineOptions("ties", density=0.3))
    print(plan)
    combined = run_combine(plan)          # .adapters, .report()

One room per concern: ``methods`` the formulas, ``options`` what a user chooses, ``sources`` which layers mean
the same, ``change`` a delta as factors or dense, ``ranks`` how many ranks, ``fit`` the stored forms, ``plan``
and ``run`` the two halves of the work, ``recipe`` the metadata, ``report`` the words.
"""

from __future__ import annotations

from .methods import METHODS, PARAMETERS, Parameter, explained
from .options import CombineOptions, Output, RankKind, RankRule
from .plan import CombinePlan, plan_combine
from .report import Combined
from .run import run_combine

__all__ = [
    "METHODS",
    "PARAMETERS",
    "CombineOptions",
    "CombinePlan",
    "Combined",
    "Output",
    "Parameter",
    "RankKind",
    "RankRule",
    "explained",
    "plan_combine",
    "run_combine",
]
