"""How many ranks to keep of a change, from its singular values, by the rule that a user chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from ..errors import BadValueError
from .lowrank import gram_spectrum, gram_svd, leading_svd, range_svd, sketchable

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
    THRESHOLD = "threshold"
    NOISE_FLOOR = "noise floor"


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
        if kind is RankKind.THRESHOLD and value < 0:
            raise BadValueError(f"the threshold is {value:g}, but must be at least 0")
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
        if self.kind in (RankKind.EXACT, RankKind.NOISE_FLOOR):
            return str(self.kind.value) + (f", at most {self.most}" if self.most else "")
        text = f"{self.kind.value} {self.value:g}{' MB' if self.kind is RankKind.BUDGET else ''}"
        text += f", at most {self.most}" if self.most else ""
        most = "" if self.kind is RankKind.FIXED else "at most "
        return text + (f", convolutions {most}{self.convolution}" if self.convolution else "")


def choose(
    values: Tensor, rule: RankRule, size: tuple[int, int] | None = None, energy: float | None = None
) -> int:
    """Ranks to keep of singular ``values`` (k,), the largest first; at least 1.

    fixed, and a budget that was shared out: its value. energy t: the fewest with ΣS² ≥ t·total. kohya's
    rules: sv_ratio t keeps S > S₀/t, sv_cumulative the fewest with ΣS ≥ t·total, sv_fro the fewest with ΣS²
    ≥ t²·total. threshold t: S > t. noise floor: the optimal threshold of Gavish and Donoho (arXiv 1305.5870)
    for a matrix of ``size`` with noise of unknown strength. exact: those above rounding noise. Never more
    than ``rule.most``. ``energy`` is the total of S² where ``values`` are only the first.
    """
    found = _chosen(values, rule, size, energy)
    return min(found, rule.most) if rule.most else found


def ranked_svd(matrix: Tensor, rule: RankRule) -> tuple[Tensor, Tensor, Tensor]:
    """(U (o, k), S (k,), Vh (k, c)) of ``matrix`` (o, c), with as many ranks k as ``rule`` keeps.

    A number that is given is found by the fastest way. Where it depends on the largest values only, the
    sketch grows until they tell; other rules need all values, but no vectors of those that are not kept.
    """
    if rule.kind in COUNTED:
        return _first(leading_svd(matrix, int(rule.value)), rule, matrix)
    energy = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    width = _FIRST_SKETCH
    while rule.kind in _BY_LARGEST and sketchable(matrix, width):
        u, s, vh = range_svd(matrix, width)
        if _settled(s, rule, energy):
            return _first((u, s, vh), rule, matrix, energy)
        width *= 2
    if rule.kind is RankKind.EXACT:
        return _first(gram_svd(matrix, min(matrix.shape)), rule, matrix)
    rank = choose(gram_spectrum(matrix), rule, (matrix.shape[0], matrix.shape[1]))
    return leading_svd(matrix, rank)


#: Rules whose value is the number of ranks.
COUNTED = (RankKind.FIXED, RankKind.BUDGET)
# Rules that need no more than the largest values (and the sum of all squares).
_BY_LARGEST = (RankKind.ENERGY, RankKind.SV_FRO, RankKind.SV_RATIO, RankKind.THRESHOLD)
_FIRST_SKETCH = 48


def _first(
    svd: tuple[Tensor, Tensor, Tensor], rule: RankRule, matrix: Tensor, energy: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = svd
    rank = choose(s, rule, (matrix.shape[0], matrix.shape[1]), energy)
    return u[:, :rank], s[:rank], vh[:rank]


def _settled(s: Tensor, rule: RankRule, energy: float) -> bool:
    """Whether ``s``, the first singular values by a sketch, tell how many ``rule`` keeps.

    The last values of a sketch are too small by some percent. Of those that are twice as large as the last
    one, the error is below 1e-4.
    """
    if rule.most and rule.most <= s.numel():
        return True
    if rule.kind is RankKind.THRESHOLD:
        return float(s[-1]) < 0.5 * rule.value
    if rule.kind is RankKind.SV_RATIO:
        return float(s[-1]) < 0.5 * float(s[0]) / rule.value
    share = rule.value**2 if rule.kind is RankKind.SV_FRO else rule.value
    return float(s.double().square().sum()) >= share * energy * (1 - 1e-12)


def _chosen(values: Tensor, rule: RankRule, size: tuple[int, int] | None, energy: float | None) -> int:
    s = values.double()
    if not s.numel() or float(s[0]) == 0.0:
        return 1
    if rule.kind in COUNTED:
        return min(int(rule.value), s.numel())
    if rule.kind is RankKind.SV_RATIO:
        return max(1, int((s > s[0] / rule.value).sum()))
    if rule.kind is RankKind.THRESHOLD:
        return max(1, int((s > max(rule.value, float(s[0]) * _NOISE)).sum()))
    if rule.kind is RankKind.NOISE_FLOOR:
        floor = _noise_floor(s, size)
        return max(1, int((s > max(floor, float(s[0]) * _NOISE)).sum()))
    if rule.kind is RankKind.SV_CUMULATIVE:
        return _fewest(s, rule.value, float(s.sum()))
    total = float(s.square().sum()) if energy is None else energy
    if rule.kind is RankKind.SV_FRO:
        return _fewest(s.square(), rule.value**2, total)
    if rule.kind is RankKind.ENERGY:
        return _fewest(s.square(), rule.value, total)
    return max(1, int((s > s[0] * _NOISE).sum()))


def _noise_floor(s: Tensor, size: tuple[int, int] | None) -> float:
    """ω(β)·median(S): below it a singular value is as likely noise as not."""
    rows, columns = size or (s.numel(), s.numel())
    beta = min(rows, columns) / max(rows, columns)
    omega = ((0.56 * beta - 0.95) * beta + 1.82) * beta + 1.43
    # Values beyond those that are given are zeros.
    return omega * float(s.median()) if s.numel() >= min(rows, columns) else 0.0


def _fewest(parts: Tensor, share: float, total: float) -> int:
    reached = parts.cumsum(0) >= share * total * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1 if bool(reached.any()) else parts.numel()
