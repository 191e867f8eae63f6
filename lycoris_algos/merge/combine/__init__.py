"""Several adapter sets into one, on their deltas: how (options), what goes together (sources), by which way.

    plan = plan_combine([Source(a), Source(b, 0.7)], CombineOptions(method=Method.TIES))
    print(plan)
    combined = run_combine(plan)          # .adapters, .report()

One file per concern: ``methods`` the formulas, ``options`` what a user chooses, ``sources`` which layers mean
the same, ``checkpoint`` base weights from a file, ``change`` a delta as factors or dense, ``ranks`` how many
ranks, ``fit`` the stored forms, ``plan`` and ``run`` the two halves of the work, ``recipe`` the metadata,
``report`` the words.
"""

from __future__ import annotations

from .checkpoint import CheckpointWeights
from .methods import LINEAR, Method
from .options import CombineOptions, Output, RankKind, RankRule
from .plan import CombinePlan, plan_combine
from .report import Combined
from .run import run_combine
from .sources import BaseWeights, Source, WeightsInMemory

__all__ = [
    "LINEAR",
    "BaseWeights",
    "CheckpointWeights",
    "CombineOptions",
    "CombinePlan",
    "Combined",
    "Method",
    "Output",
    "RankKind",
    "RankRule",
    "Source",
    "WeightsInMemory",
    "plan_combine",
    "run_combine",
]
