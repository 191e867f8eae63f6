"""How many ranks to keep of a change, from its singular values, by the rule that a user chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from ..errors import BadValueError

# What float32 factors leave where the exact singular value is 0.
_NOISE = 1e-7


class RankKind(str, Enum):
    """How the number of ranks is found."""

    EXACT = "exact"
    FIXED = "fixed rank"
    ENERGY = "energy"
    BUDGET = "size budget"
    SV_RATIO = "sv_ratio"
    SV_FRO = "sv_fro"
    SV_CUMULATIVE = "sv_cumulative"


@dataclass(frozen=True)
class RankRule:
    """``kind`` and its number: the rank, the share of energy, megabytes, or kohya's threshold.

    ``most`` caps what a rule finds by itself, and ``convolution`` takes its place (or that of a fixed rank)
    on convolutions whose kernel is larger than 1×1. 0 is none.
    """

    kind: RankKind = RankKind.EXACT
    value: float = 0.0
    most: int = 0
    convolution: int = 0

    def check(self) -> None:
        """Raises BadValueError for a number that the rule cannot use."""
        kind, value = self.kind, self.value
        if not math.isfinite(value):
            raise BadValueError(f"the number of the rank rule is {value:g}, but must be finite")
        if min(self.most, self.convolution) < 0:
            raise BadValueError("a largest rank is a whole number from 1 on, or 0 for none")
        if kind is RankKind.EXACT and (self.most or self.convolution):
            raise BadValueError(
                "'exact' keeps all ranks, so there is no largest one: choose another rank rule"
            )
        if kind is RankKind.FIXED and self.most:
            raise BadValueError("a fixed rank is the same everywhere, so there is no largest one")
        if kind is RankKind.FIXED and (value < 1 or value != int(value)):
            raise BadValueError(f"the rank is {value:g}, but must be a whole number from 1 on")
        if kind in (RankKind.ENERGY, RankKind.SV_FRO, RankKind.SV_CUMULATIVE) and not 0 < value <= 1:
            raise BadValueError(f"{kind.value} is {value:g}, but must lie above 0 and be at most 1")
        if kind is RankKind.SV_RATIO and value < 1:
            raise BadValueError(f"sv_ratio is {value:g}, but must be at least 1")
        if kind is RankKind.BUDGET and value <= 0:
            raise BadValueError(f"the size budget is {value:g} MB, but must be above 0")

    def of(self, shape: Sequence[int] | None) -> RankRule:
        """The rule for one weight of ``shape``, which has no number for convolutions any more."""
        own = self.convolution if shape is not None and math.prod(shape[2:]) > 1 else 0
        if own and self.kind is RankKind.FIXED:
            return replace(self, value=own, convolution=0)
        return replace(self, most=own or self.most, convolution=0)

    def __str__(self) -> str:
        if self.kind is RankKind.EXACT:
            return "exact"
        text = f"{self.kind.value} {self.value:g}{' MB' if self.kind is RankKind.BUDGET else ''}"
        text += f", at most {self.most}" if self.most else ""
        most = "" if self.kind is RankKind.FIXED else "at most "
        return text + (f", convolutions {most}{self.convolution}" if self.convolution else "")


def choose(values: Tensor, rule: RankRule) -> int:
    """Ranks to keep of singular ``values`` (k,), the largest first; at least 1.

    fixed, and a budget that was shared out: its value. energy t: the fewest with ΣS² ≥ t·total. kohya's
    rules: sv_ratio t keeps S > S₀/t, sv_cumulative the fewest with ΣS ≥ t·total, sv_fro the fewest with ΣS²
    ≥ t²·total. exact: those above rounding noise. Never more than ``rule.most``.
    """
    found = _chosen(values, rule)
    return min(found, rule.most) if rule.most else found


def _chosen(values: Tensor, rule: RankRule) -> int:
    s = values.double()
    if not s.numel() or float(s[0]) == 0.0:
        return 1
    if rule.kind in (RankKind.FIXED, RankKind.BUDGET):
        return min(int(rule.value), s.numel())
    if rule.kind is RankKind.SV_RATIO:
        return max(1, int((s > s[0] / rule.value).sum()))
    if rule.kind is RankKind.SV_CUMULATIVE:
        return _fewest(s, rule.value)
    if rule.kind is RankKind.SV_FRO:
        return _fewest(s.square(), rule.value**2)
    if rule.kind is RankKind.ENERGY:
        return _fewest(s.square(), rule.value)
    return max(1, int((s > s[0] * _NOISE).sum()))


def _fewest(parts: Tensor, share: float) -> int:
    reached = parts.cumsum(0) >= share * parts.sum() * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1 if bool(reached.any()) else parts.numel()
