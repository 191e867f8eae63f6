"""Numbers that the dtype of a new tensor cannot hold: which tensor has them, and where they come from.

PyTorch makes them infinite, or in fp8 the largest number that there is, and NaN of a broken base stays NaN. A
run refuses them, or writes them and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...model_files import Checkpoint
from ...ops.rounding import overflow_threshold
from ...text import Brief, quoted
from .plan import TensorPlan
from .weights import Baked


@dataclass(frozen=True)
class Unheld(Brief):
    """A tensor with numbers that its dtype cannot hold. ``str`` of it is for a person.

    ``largest`` is the largest magnitude of the exact weight, infinite or NaN where there is such a number;
    ``broken`` the tensor of the base, if any, that holds one already.
    """

    name: str
    dtype: torch.dtype
    largest: float
    broken: str | None

    def __str__(self) -> str:
        where = quoted(self.name)
        if self.broken is not None:
            own = "it" if self.broken == self.name else quoted(self.broken)
            return f"{where}: the base model itself holds numbers in {own} that are NaN or infinite"
        if not math.isfinite(self.largest):
            return f"{where}: the change makes numbers that are NaN or infinite"
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"{where}: its weights reach {self.largest:.4g}, beyond the largest number of {kind}, "
            f"{torch.finfo(self.dtype).max:g}"
        )

    @property
    def advice(self) -> str:
        """What a person may do about it."""
        report = "or have it written and only reported"
        if self.broken is not None:
            return f"The file is damaged, or was made by a merge that went wrong: use another copy, {report}"
        if not math.isfinite(self.largest):
            return f"Lower the strength, {report}"
        return f"Save in a wider number type (bf16 or fp32), lower the strength, {report}"


def unheld(item: TensorPlan, baked: Baked, base: Checkpoint) -> Unheld | None:
    """What ``item``, as ``baked`` of ``base``, cannot hold; None if it holds everything."""
    reached = baked.extremes.largest
    if reached < overflow_threshold(item.dtype):
        return None
    scale = 1.0 if baked.scale is None else float(baked.scale.reshape(-1)[0])
    keys = dict.fromkeys((item.info.name, *(s.key for change in item.changes for s in change.spots)))
    broken = next((key for key in keys if not bool(base[key].float().isfinite().all())), None)
    return Unheld(item.info.name, item.dtype, reached * scale, broken)
