"""Corrections of alpha for training options (rs_lora) that several algorithms share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

from ._base import Algorithm
from ._trained import TrainingFacts

_A = TypeVar("_A", bound=Algorithm)


def rank_stabilised(
    name: str, algorithm: _A, facts: TrainingFacts, always: bool = False
) -> tuple[_A, str] | None:
    """rs_lora divides alpha by √r. LyCORIS writes alpha·√r, except where the file's alphas are raw.

    ``always``: of an algorithm whose alpha LyCORIS never writes with √r.
    """
    alpha: float | None = getattr(algorithm, "alpha", None)
    if not facts.flag("rs_lora") or alpha is None or algorithm.rank is None:
        return None
    if not (always or facts.raw_alphas):
        return None
    changed: Any = replace(algorithm, alpha=alpha * math.sqrt(algorithm.rank))  # type: ignore[type-var]
    return changed, "rs_lora whose alpha was stored without √rank: multiplied by it"
