"""The options of an extraction, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ..errors import BadValueError
from ..network.respelling import WRITABLE
from ..ops.ranks import RankKind, RankRule
from ..text import Brief, quoted

AUTO, LORA, TUCKER, LOKR, LOHA, DORA, FULL = "auto", "lora", "tucker lora", "lokr", "loha", "dora", "full"
#: What a change may be stored as; AUTO chooses for each layer.
ALGORITHMS = (AUTO, LORA, TUCKER, LOKR, LOHA, DORA, FULL)

FIXED, SIZE, NOISE_FLOOR = "fixed rank", "size", "noise floor"
#: How ranks are found: LyCORIS' modes, a share of the energy, Gavish and Donoho's threshold, a file's size.
MODES = (FIXED, "threshold", "ratio", "quantile", "energy", NOISE_FLOOR, SIZE)
_KINDS = {
    FIXED: RankKind.FIXED,
    "fixed": RankKind.FIXED,
    "threshold": RankKind.THRESHOLD,
    # LyCORIS keeps one rank fewer than reach the quantile: here it is reached.
    "quantile": RankKind.SV_CUMULATIVE,
    "energy": RankKind.ENERGY,
    NOISE_FLOOR: RankKind.NOISE_FLOOR,
    SIZE: RankKind.BUDGET,
}


def rule_for(mode: str, value: float) -> RankRule:
    """The rule that ``mode`` with its number (rank, threshold, share, megabytes) is.

    Raises BadValueError for a mode that there is not, or a number that it cannot use.
    """
    if mode == "ratio":  # LyCORIS' ratio keeps S > value·S₀
        if not 0 < value <= 1:
            raise BadValueError(f"the ratio is {value:g}, but must lie above 0 and be at most 1")
        return RankRule(RankKind.SV_RATIO, 1.0 / value)
    if mode not in _KINDS:
        raise BadValueError(f"there is no mode {quoted(mode)}: choose one of {', '.join(MODES)}")
    rule = RankRule(_KINDS[mode], 0.0 if mode == NOISE_FLOOR else float(value))
    rule.check()
    return rule


@dataclass(frozen=True)
class ExtractOptions(Brief):
    """Everything about an extraction but the models. Raises BadValueError for what makes no sense.

    ``linear`` and ``convolution`` are the rules for ranks; the second is for kernels larger than 1×1, as in
    LyCORIS. A size budget is ``linear``'s and for the whole file. ``factor`` is LyCORIS' size of w1 for a
    LoKr, −1 for its default, 0 to choose. ``sparsity`` is the share of elements of what a fit leaves that is
    not stored beside it; None stores none. ``include`` and ``exclude`` are patterns of layer names: with
    ``*`` and ``?``, or a part of the name. ``dialect`` None takes what is usual for the model.
    """

    algorithm: str = LORA
    linear: RankRule = field(default_factory=lambda: rule_for(FIXED, 32))
    convolution: RankRule = field(default_factory=lambda: rule_for(FIXED, 16))
    factor: int = 0
    sparsity: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    text_encoders: bool = True
    norms_and_biases: bool = True
    dtype: torch.dtype = torch.float16
    dialect: str | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise BadValueError(
                f"there is no algorithm {quoted(self.algorithm)}: choose one of {', '.join(ALGORITHMS)}"
            )
        for rule in (self.linear, self.convolution):
            rule.check()
        if self.algorithm == FULL and self.linear.kind is RankKind.BUDGET:
            raise BadValueError("whole changes have one size only: choose another algorithm for a size")
        if self.sparsity is not None and not (math.isfinite(self.sparsity) and 0 <= self.sparsity < 1):
            raise BadValueError(f"the sparsity is {self.sparsity:g}, but must be at least 0 and below 1")
        if self.sparsity is not None and self.algorithm == DORA:
            raise BadValueError("DoRA changes lengths afterwards, so no sparse residual can stand beside it")
        if self.dialect is not None and self.dialect not in WRITABLE:
            raise BadValueError(f"files are written as {', '.join(WRITABLE)}, not as {quoted(self.dialect)}")

    def rule(self, kernel: int) -> RankRule:
        """The rule for a weight whose kernel has so many positions."""
        budget = self.linear.kind is RankKind.BUDGET
        return self.linear if kernel == 1 or budget else self.convolution

    @property
    def priced(self) -> bool:
        """Whether layers are compared with each other before any is stored: that takes two passes."""
        return self.algorithm == AUTO or self.linear.kind is RankKind.BUDGET

    def __str__(self) -> str:
        if self.algorithm == FULL:
            return "whole changes"
        text = f"{self.algorithm}, rank: {self.linear}"
        same = self.convolution == self.linear or self.linear.kind is RankKind.BUDGET
        return text if same else f"{text}, of convolutions: {self.convolution}"
