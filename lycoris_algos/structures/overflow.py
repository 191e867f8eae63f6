"""Whether a changed weight goes beyond what its number type holds, found out where that is cheap.

An upper bound of the change, from its factors, rules out nearly every layer. What it does not rule out is
computed. A change that depends on the weight has no bound that costs less than the change itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops.rounding import Extremes, overflow_threshold
from .apply import Entry, apply_

# The share of a number type's range from which on a change is looked at. No model has weights that fill
# the rest.
_SUSPECT = 0.5
# What no weight ever reaches.
_WIDE = 1e30


@torch.no_grad()
def overflow(entries: Sequence[Entry], dtype: torch.dtype, weight: Callable[[], Tensor]) -> float | None:
    """How far a weight reaches with ``entries`` applied, if that is beyond what ``dtype`` holds; else None.

    None also where that is not known: see this module. ``weight`` makes a float32 copy of it.
    """
    if not dtype.is_floating_point or torch.finfo(dtype).max > _WIDE:
        return None
    limit, bound = overflow_threshold(dtype), 0.0
    for structure, multiplier in entries:
        if multiplier == 0.0:
            continue
        reach = structure.cast(torch.device("cpu"), torch.float32).reach()
        if reach is None:
            return None
        bound += abs(multiplier) * reach
    if bound < _SUSPECT * limit:
        return None
    extremes = Extremes()
    apply_(weight(), entries, extremes=extremes)
    return None if extremes.largest < limit else extremes.largest
