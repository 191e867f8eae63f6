"""The options of a combination, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ...adapters import fittable
from ...errors import BadValueError
from ...ops.ranks import RankKind, RankRule
from ...text import quoted
from .methods import MergeMethod, Parameters, find

#: Outputs that are no algorithm: each layer as its adapters are, where they agree on one that can be kept,
#: else as AUTO; and whatever is smallest: what is there already, a LoRA, or the whole change.
SAME, AUTO = "same", "auto"
#: What a change is stored as where nothing else is asked for, and where nothing smaller holds it.
LORA, FULL = "lora", "full"


def outputs() -> tuple[str, ...]:
    """What the result may be stored as, in the order in which a user is offered it."""
    others = (name for name in fittable() if name not in (LORA, FULL))
    return (SAME, LORA, *others, FULL, AUTO)


@dataclass(frozen=True)
class CombineOptions(Parameters):
    """Everything about a combination but the files. Raises BadValueError for what makes no sense.

    ``method`` is the name of one of ``METHODS``, ``output`` one of ``outputs``; what methods can be told is
    given by keyword. ``scaling`` is λ, a factor on the result of every method. ``factor`` is LyCORIS' size
    of w1 for a LoKr output, −1 for its default, 0 to choose what keeps most. ``dtype`` None stores as the
    sources are stored. With ``live_order``, ``sum`` takes each weight-dependent delta from the weight as
    the adapters before it left it, as a stack does when it is applied; otherwise every delta is that of the
    base weight.
    """

    method: str = "sum"
    scaling: float = 1.0
    output: str = SAME
    rank: RankRule = field(default_factory=RankRule)
    dtype: torch.dtype | None = None
    factor: int = 0
    live_order: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        method = find(self.method)
        if self.output not in outputs():
            raise BadValueError(
                f"there is no output {quoted(self.output)}: choose one of {', '.join(outputs())}"
            )
        self.rank.check()
        if not math.isfinite(self.scaling):
            raise BadValueError(f"lambda is {self.scaling:g}, but must be finite")
        if self.scaling == 0:
            raise BadValueError("lambda is 0, which leaves nothing of the result")
        if self.rank.kind is RankKind.BUDGET and self.output == FULL:
            raise BadValueError("whole changes have one size only: choose another output for a size budget")
        if self.live_order and not method.like_stack:
            raise BadValueError(f"only 'sum' can replay the live order, '{self.method}' cannot")

    @property
    def merge_method(self) -> MergeMethod:
        """The method by its name."""
        return find(self.method)
