"""What a user chooses for a combination, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch

from ...errors import BadValueError
from .methods import MergeMethod, Parameters, find


class Output(str, Enum):
    """The algorithm that the result is stored as."""

    #: Each layer as its adapters are, where they agree on one that can be kept; else as ``AUTO``.
    SAME = "same"
    LORA = "lora"
    LOKR = "lokr"
    LOHA = "loha"
    FULL = "full"
    #: Whatever is smallest: what is there already, a LoRA, or the whole change.
    AUTO = "auto"


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
    """``kind`` and its number: the rank, the share of energy, megabytes, or kohya's threshold."""

    kind: RankKind = RankKind.EXACT
    value: float = 0.0

    def check(self) -> None:
        """Raises BadValueError for a number that the rule cannot use."""
        kind, value = self.kind, self.value
        if kind is RankKind.FIXED and (value < 1 or value != int(value)):
            raise BadValueError(f"the rank is {value:g}, but must be a whole number from 1 on")
        if kind in (RankKind.ENERGY, RankKind.SV_FRO, RankKind.SV_CUMULATIVE) and not 0 < value <= 1:
            raise BadValueError(f"{kind.value} is {value:g}, but must lie above 0 and be at most 1")
        if kind is RankKind.SV_RATIO and value < 1:
            raise BadValueError(f"sv_ratio is {value:g}, but must be at least 1")
        if kind is RankKind.BUDGET and value <= 0:
            raise BadValueError(f"the size budget is {value:g} MB, but must be above 0")

    def __str__(self) -> str:
        if self.kind is RankKind.EXACT:
            return "exact"
        return f"{self.kind.value} {self.value:g}{' MB' if self.kind is RankKind.BUDGET else ''}"


@dataclass(frozen=True)
class CombineOptions(Parameters):
    """Everything about a combination but the files. Raises BadValueError for what makes no sense.

    ``method`` is the name of one of ``METHODS``; what methods can be told is given by keyword. ``scaling`` is
    λ, a factor on the result of every method. ``factor`` is LyCORIS' size of w1 for a LoKr output, −1 for its
    default, 0 to choose what keeps most. ``dtype`` None stores as the sources are stored. With
    ``live_order``, ``sum`` takes each weight-dependent delta from the weight as the adapters before it left
    it, as a stack does when it is applied; otherwise every delta is that of the base weight.
    """

    method: str = "sum"
    scaling: float = 1.0
    output: Output = Output.SAME
    rank: RankRule = field(default_factory=RankRule)
    dtype: torch.dtype | None = None
    factor: int = 0
    live_order: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        method = find(self.method)
        self.rank.check()
        if self.scaling == 0:
            raise BadValueError("lambda is 0, which leaves nothing of the result")
        if self.rank.kind is RankKind.BUDGET and self.output is Output.FULL:
            raise BadValueError("whole changes have one size only: choose another output for a size budget")
        if self.live_order and not method.like_stack:
            raise BadValueError(f"only 'sum' can replay the live order, '{self.method}' cannot")

    @property
    def merge_method(self) -> MergeMethod:
        """The method by its name."""
        return find(self.method)
