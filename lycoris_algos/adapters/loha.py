"""LoHa: the Hadamard (elementwise) product of two low-rank matrices.

    ΔW = α/r · (w1a·w1b) ⊙ (w2a·w2b)          w1a, w2a (o, r), w1b, w2b (r, i·∏k)

With Tucker kernels t1, t2 (r, r, k…) each half is Σ_ab t[a, b, k…]·wa[a, p]·wb[b, q], and wa is stored
transposed, (r, o), wb (r, i). The rank is always that of ``hada_w1_b``, whose first axis is r in every form.
α/r enters once: LyCORIS' own merge applies it twice, its training forward does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..ops.dtypes import solving, times
from ..ops.hadamard import fit_hadamard
from ..ops.lowrank import gram_spectrum
from ..ops.ranks import COUNTED, RankKind, RankRule, choose
from ..ops.starting import has_kernel, normal, zeros
from ..ops.tucker import absorb_input
from ..structures import Hadamard
from ._base import FLOAT, Algorithm, Base, Shape, scale
from ._fitting import FitRequest, Fitted, Price, lora_energy
from ._keys import KeySpec
from ._peft import folded, scaled_by_peft
from ._range import filling_range
from ._stored import number, require_equal, require_matrix, row_numel, tensor
from ._trained import PeftReading, PeftSettings, TrainingFacts
from ._trainers import rank_stabilised, trained_alpha

# What tells whether a change is worth the time of a fit: one of this rank to so many rows and columns of it
# has to lose less than this share of what a LoRA of its size loses.
_PROBE, _CORNER, _SWEEPS, _WORTH = 4, 96, 10, 0.95
# The largest rank that is priced.
_PRICED = 16


@dataclass(frozen=True, eq=False)
class LoHa(Algorithm):
    """One layer's LoHa. Formula and shapes: this module."""

    algo: ClassVar[str] = "loha"
    title: ClassVar[str] = "LoHa"
    reference: ClassVar[str] = "https://arxiv.org/abs/2108.06098"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        together=(("hada_t1", "hada_t2"),),
        optional=("alpha", "scale"),
    )
    trained_as: ClassVar[tuple[str, ...]] = ("loha",)

    w1_a: Tensor = tensor("hada_w1_a")
    w1_b: Tensor = tensor("hada_w1_b")
    w2_a: Tensor = tensor("hada_w2_a")
    w2_b: Tensor = tensor("hada_w2_b")
    t1: Tensor | None = tensor("hada_t1", optional=True)
    t2: Tensor | None = tensor("hada_t2", optional=True)
    alpha: float | None = number("alpha")
    fixed_scale: float | None = number("scale")

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def check(self) -> None:
        for name, value in self.tensors():
            require_matrix(name, value)
        for n, a, b, t in ((1, self.w1_a, self.w1_b, self.t1), (2, self.w2_a, self.w2_b, self.t2)):
            ranks = {f"hada_w{n}_b": b.shape[0]}
            ranks[f"hada_w{n}_a"] = row_numel(a) if t is None else a.shape[0]
            if t is not None:
                ranks[f"hada_t{n}"] = t.shape[0]
                ranks[f"hada_t{n} (second axis)"] = t.shape[1]
            require_equal("rank", ranks)
        require_equal("rank", {"hada_w1_b": self.w1_b.shape[0], "hada_w2_b": self.w2_b.shape[0]})
        (o1, i1), (o2, i2) = self._half_shape(1), self._half_shape(2)
        require_equal("output size", {"hada_w1_a": o1, "hada_w2_a": o2})
        require_equal("input size", {"hada_w1_b": i1, "hada_w2_b": i2})

    def _half_shape(self, half: int) -> tuple[int, int]:
        a, b, t = (self.w1_a, self.w1_b, self.t1) if half == 1 else (self.w2_a, self.w2_b, self.t2)
        if t is None:
            return a.shape[0], row_numel(b)
        return row_numel(a), row_numel(b) * math.prod(t.shape[2:])

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self._half_shape(1)

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        if self.t1 is not None:
            return (row_numel(self.w1_a), row_numel(self.w1_b), *self.t1.shape[2:])
        # A flat factor is that of a Linear or of a convolution: LyCORIS stores both alike.
        return (self.w1_a.shape[0], *self.w1_b.shape[1:]) if self.w1_b.dim() > 2 else None

    @property
    def exact_rank(self) -> int:
        return self.rank * self.w2_b.shape[0]

    def filling(self) -> LoHa:
        return filling_range(self)

    def multiplied(self, factor: Factor) -> LoHa:
        return replace(self, w1_a=times(self.w1_a, factor))

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Hadamard:
        def half(a: Tensor, b: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
            a, b = a.flatten(1), b.flatten(1)
            return (a, b) if t is None else (a.T, absorb_input(solving(t), solving(b)).to(dtype))

        first, second = half(self.w1_a, self.w1_b, self.t1), half(self.w2_a, self.w2_b, self.t2)
        return Hadamard(*first, *second, scale(self.alpha, self.rank, self.fixed_scale))

    # ---- training -------------------------------------------------------------------------------

    @classmethod
    def begin(
        cls,
        weight: Tensor,
        *,
        lora_dim: int = 4,
        alpha: float | None = 1.0,
        use_tucker: bool = False,
        use_scalar: bool = False,
        rs_lora: bool = False,
    ) -> LoHa:
        """ΔW is 0: the second outer factor is, or (``use_scalar``) what everything is multiplied by."""
        outputs, inputs, *kernel = weight.shape
        tucker = use_tucker and has_kernel(weight.shape)
        outer = (lora_dim, outputs) if tucker else (outputs, lora_dim)
        inner = (lora_dim, inputs if tucker else inputs * math.prod(kernel))
        first, second = (normal(weight, *outer, std=0.1) for _ in range(2))
        t1, t2 = (normal(weight, lora_dim, lora_dim, *kernel, std=0.1) if tucker else None for _ in range(2))
        return cls(
            first,
            normal(weight, *inner, std=1.0),
            second if use_scalar else zeros(weight, *outer),
            normal(weight, *inner, std=1.0),
            t1,
            t2,
            trained_alpha(alpha, lora_dim, rs_lora),
        )

    @classmethod
    def numbers_per_rank(cls, rows: int, columns: int) -> int:
        return 2 * (rows + columns)

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        """By alternating least squares. A fixed rank is its own; others are about a LoRA of as many bytes.

        Its rank is half of that LoRA's then; for a share of energy it is doubled until the share is reached
        or two factors would be as large as the change.
        """
        matrix, rule = request.change.delta(), request.rule
        rows, columns = request.size
        if rule.kind in COUNTED:
            rank = int(rule.value)
        else:
            rank = max(1, choose(request.values, rule, (rows, columns)) // 2)
        most = rule.most or 2 * max(rows, columns)
        while True:
            rank = min(rank, rows, columns)
            fitted = cls(*fit_hadamard(matrix, rank), alpha=float(rank))
            kept = cls._kept(fitted, request)
            enough = rule.kind is not RankKind.ENERGY or kept >= rule.value * request.energy
            if enough or 4 * rank > most or 4 * rank * (rows + columns) > rows * columns:
                break
            rank *= 2
        numbers = rank * cls.numbers_per_rank(rows, columns)
        return Fitted(fitted, rank, lora_energy(request, numbers))

    @staticmethod
    def _kept(fitted: LoHa, request: FitRequest) -> float:
        """Of ΣD², what ``fitted`` keeps."""
        made = fitted.structure(request.size).delta()
        return request.energy - float((request.change.delta() - made).double().square().sum())

    @classmethod
    def prices(cls, request: FitRequest) -> list[Price]:
        """Of a few ranks, and only where a corner of the change is nearer to a LoHa than to a LoRA.

        Each price is a whole fit, the slowest of all; most changes are no elementwise product.
        """
        rows, columns = request.size
        corner = request.change.delta()[:_CORNER, :_CORNER]
        a1, b1, a2, b2 = fit_hadamard(corner, _PROBE, _SWEEPS, starts=2)
        left = gram_spectrum(corner)[2 * _PROBE :].square().sum()
        if not float((corner - (a1 @ b1) * (a2 @ b2)).double().square().sum()) < _WORTH * float(left):
            return []
        offers = []
        rank = 2
        while rank <= min(_PRICED, rows, columns) and 2 * rank * (rows + columns) < rows * columns:
            fitted = cls.fit(replace(request, rule=RankRule(RankKind.FIXED, rank))).stored
            assert isinstance(fitted, LoHa)
            numbers = rank * cls.numbers_per_rank(rows, columns)
            offers.append(Price(numbers, cls._kept(fitted, request), (rank,)))
            rank *= 2
        return offers

    # ---- trainers -------------------------------------------------------------------------------

    def as_trained(self, name: str, facts: TrainingFacts) -> Iterator[tuple[LoHa, str]]:
        corrected = rank_stabilised(name, self, facts)
        if corrected is not None:
            yield corrected

    def from_peft(self, settings: PeftSettings) -> PeftReading:
        return scaled_by_peft(self, settings)

    def row_part(self, start: int, count: int) -> LoHa:
        axis = 0 if self.t1 is None else 1
        first, second = (a.narrow(axis, start, count).clone() for a in (self.w1_a, self.w2_a))
        return replace(self, w1_a=first, w2_a=second)

    def to_peft(self) -> LoHa:
        return folded(self)
