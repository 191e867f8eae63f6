"""What several algorithms share about alpha: how training asks for it, and corrections for rs_lora."""

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


def trained_alpha(alpha: float | None, rank: int, rs_lora: bool) -> float:
    """alpha as it is stored, where training asks for ``alpha``: 0 or None is ``rank``, which scales by 1.

    ``rs_lora`` scales by alpha/√rank; α·√rank says that to every reader.
    """
    asked = float(alpha) if alpha else float(rank)
    return asked * math.sqrt(rank) if rs_lora else asked
