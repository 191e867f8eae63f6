"""Extracts an adapter set out of two models: what the tuned one has more than its base.

    with BaseFile(base) as first, BaseFile(tuned) as second:
        plan = plan_extract(first, second, ExtractOptions("auto", rule_for("size", 60)))
        print(plan)
        extracted = run_extract(plan)         # .adapters, .report()

``options`` what a user chooses, ``plan`` and ``run`` the two halves of the work, ``choice`` which form and
size each layer gets, ``recipe`` the metadata, ``report`` the words. Fits are in ../adapters, budgets and
measuring in ../deltas, as for combining.
"""

from __future__ import annotations

from .options import ALGORITHMS, MODES, ExtractOptions, rule_for
from .plan import ExtractPlan, plan_extract
from .report import Extracted
from .run import run_extract

__all__ = [
    "ALGORITHMS",
    "MODES",
    "ExtractOptions",
    "ExtractPlan",
    "Extracted",
    "plan_extract",
    "rule_for",
    "run_extract",
]
