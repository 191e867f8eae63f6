"""LoKr: a Kronecker product of two small matrices, either of which may be low-rank itself.

    ΔW = s · w1 ⊗ w2          w1 (o1, i1), w2 (o2, i2·∏k), o = o1·o2, i = i1·i2

w1 is stored whole (``lokr_w1``) or as ``lokr_w1_a``·``lokr_w1_b``; w2 whole (``lokr_w2``, (o2, i2, k…)), as
``lokr_w2_a``·``lokr_w2_b``, or with a Tucker kernel ``lokr_t2`` (r, r, k…), where ``lokr_w2_a`` is stored
transposed, (r, o2). s = α/r with r from whichever factor is low-rank, once even when both are; 1 when both
are whole, where trainers ignore alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..errors import BadValueError
from ..ops.divisors import divisor, factorization
from ..ops.dtypes import solving, times
from ..ops.kronecker import kronecker_share, nearest_kronecker
from ..ops.lowrank import best_factors, gram_spectrum, leading_values
from ..ops.ranks import COUNTED, RankKind, choose
from ..ops.starting import has_kernel, kaiming, zeros
from ..ops.tucker import absorb_input
from ..structures import Dense, Kronecker, LowRank
from ._base import FLOAT, Algorithm, Base, Shape, scale
from ._fitting import FitRequest, Fitted, Price, lora_energy
from ._keys import KeySpec
from ._peft import folded, scaled_by_peft
from ._range import filling_range
from ._stored import number, require_equal, require_matrix, row_numel, tensor
from ._trained import PeftReading, PeftSettings, TrainingFacts
from ._trainers import rank_stabilised, trained_alpha


@dataclass(frozen=True, eq=False)
class LoKr(Algorithm):
    """One layer's LoKr. Formula and shapes: this module."""

    algo: ClassVar[str] = "lokr"
    title: ClassVar[str] = "LoKr"
    reference: ClassVar[str] = "https://arxiv.org/abs/2309.14859"
    keys: ClassVar[KeySpec] = KeySpec(
        choices=(
            (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")),
            (
                ("lokr_w2",),
                ("lokr_w2_a", "lokr_w2_b"),
                ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            ),
        ),
        optional=("alpha", "scale"),
    )
    trained_as: ClassVar[tuple[str, ...]] = ("lokr",)

    w1: Tensor | None = tensor("lokr_w1", optional=True)
    w1_a: Tensor | None = tensor("lokr_w1_a", optional=True)
    w1_b: Tensor | None = tensor("lokr_w1_b", optional=True)
    w2: Tensor | None = tensor("lokr_w2", optional=True)
    w2_a: Tensor | None = tensor("lokr_w2_a", optional=True)
    w2_b: Tensor | None = tensor("lokr_w2_b", optional=True)
    t2: Tensor | None = tensor("lokr_t2", optional=True)
    alpha: float | None = number("alpha")
    fixed_scale: float | None = number("scale")

    @property
    def rank(self) -> int | None:
        # The second axis of an _a factor is no rank where a Tucker kernel transposes it; a _b's first is.
        low_rank = self.w2_b if self.w2_b is not None else self.w1_b
        return None if low_rank is None else low_rank.shape[0]

    def check(self) -> None:
        for name, value in self.tensors():
            require_matrix(name, value)
        if self.w1_a is not None and self.w1_b is not None:
            require_equal("rank", {"lokr_w1_a": row_numel(self.w1_a), "lokr_w1_b": self.w1_b.shape[0]})
        if self.w2_a is not None and self.w2_b is not None:
            ranks = {"lokr_w2_b": self.w2_b.shape[0]}
            ranks["lokr_w2_a"] = row_numel(self.w2_a) if self.t2 is None else self.w2_a.shape[0]
            if self.t2 is not None:
                ranks["lokr_t2"] = self.t2.shape[0]
                ranks["lokr_t2 (second axis)"] = self.t2.shape[1]
            require_equal("rank", ranks)

    def facts(self) -> dict[str, float]:
        rows, columns = self.first_shape
        factor = {"factor": rows} if rows == columns else {"factor out": rows, "factor in": columns}
        return {**super().facts(), **factor}

    @property
    def matrix_shape(self) -> tuple[int, int]:
        (o1, i1), (o2, i2) = self.first_shape, self._second_shape()
        return o1 * o2, i1 * i2

    @property
    def first_shape(self) -> tuple[int, int]:
        """(o1, i1), the shape of w1."""
        if self.w1 is not None:
            return self.w1.shape[0], row_numel(self.w1)
        a, b = _both(self.w1_a, self.w1_b)
        return a.shape[0], row_numel(b)

    def _second_shape(self) -> tuple[int, int]:
        if self.w2 is not None:
            return self.w2.shape[0], row_numel(self.w2)
        a, b = _both(self.w2_a, self.w2_b)
        if self.t2 is None:
            return a.shape[0], row_numel(b)
        return row_numel(a), row_numel(b) * math.prod(self.t2.shape[2:])

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        (o1, i1), (o2, _) = self.first_shape, self._second_shape()
        if self.w2 is not None:
            return (o1 * o2, i1 * self.w2.shape[1], *self.w2.shape[2:])
        _, b = _both(self.w2_a, self.w2_b)
        # A flat pair is that of a Linear or of a convolution: LyCORIS stores both alike.
        return None if self.t2 is None else (o1 * o2, i1 * row_numel(b), *self.t2.shape[2:])

    @property
    def exact_rank(self) -> int:
        first, second = min(self.first_shape), min(self._second_shape())
        if self.w1_b is not None:
            first = min(first, self.w1_b.shape[0])
        return first * (second if self.w2_b is None else min(second, self.w2_b.shape[0]))

    @classmethod
    def of(cls, w1: Tensor, w2: Tensor, shape: Sequence[int] | None, rank: int | None = None) -> LoKr:
        """The LoKr with ΔW = w1 ⊗ w2 (o2, i2·∏k), stored as files of a weight of ``shape`` hold it.

        With ``rank``, w2 is cut to the best factors of that rank where they are smaller than w2.
        """
        if rank is not None and rank * sum(w2.shape) < w2.numel():
            left, right = best_factors(w2, torch.eye(w2.shape[1], dtype=w2.dtype, device=w2.device), rank)
            return cls(w1=w1, w2_a=left.contiguous(), w2_b=right.contiguous(), alpha=float(rank))
        kernel = () if shape is None else shape[2:]
        w2 = w2.reshape(w2.shape[0], w2.shape[1] // torch.Size(kernel).numel(), *kernel)
        return cls(w1=w1.contiguous(), w2=w2.contiguous(), alpha=1.0)

    def filling(self) -> LoKr:
        return filling_range(self)

    def multiplied(self, factor: Factor) -> LoKr:
        if self.w1 is not None:
            return replace(self, w1=times(self.w1, factor))
        return replace(self, w1_a=times(_both(self.w1_a, self.w1_b)[0], factor))

    @property
    def _scale(self) -> float:
        return scale(self.alpha, self.rank, self.fixed_scale)

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Kronecker:
        if self.w1 is not None:
            first: Dense | LowRank = Dense(self.w1.flatten(1))
        else:
            a, b = _both(self.w1_a, self.w1_b)
            first = LowRank(a.flatten(1), b.flatten(1))
        return Kronecker(first, self._second(dtype), self._scale)

    def _second(self, dtype: torch.dtype) -> Dense | LowRank:
        if self.w2 is not None:
            return Dense(self.w2.flatten(1))
        a, b = (factor.flatten(1) for factor in _both(self.w2_a, self.w2_b))
        if self.t2 is None:
            return LowRank(a, b)
        return LowRank(a.T, absorb_input(solving(self.t2), solving(b)).to(dtype))

    def cut(self, rank: int, nested: str | None) -> LoKr | None:
        """Its low-rank factors (either or both) cut to the best ``rank`` ranks, at the same scale."""
        if self.rank is None:
            return None
        shortened = self
        if self.w1_a is not None and self.w1_b is not None:
            a, b = best_factors(self.w1_a.flatten(1), self.w1_b.flatten(1), rank)
            shortened = replace(shortened, w1_a=a, w1_b=b)
        second = self._second(torch.float32)
        if isinstance(second, LowRank):
            a, b = best_factors(second.up.float(), second.down.float(), rank)
            shortened = replace(shortened, w2_a=a, w2_b=b, t2=None)
        alpha = self.alpha
        if alpha is not None and shortened.rank is not None:
            alpha *= shortened.rank / self.rank
        return replace(shortened, alpha=alpha)

    # ---- training -------------------------------------------------------------------------------

    @classmethod
    def begin(
        cls,
        weight: Tensor,
        *,
        lora_dim: int = 4,
        alpha: float | None = 1.0,
        factor: int = -1,
        use_tucker: bool = False,
        use_scalar: bool = False,
        rs_lora: bool = False,
        decompose_both: bool = False,
        full_matrix: bool = False,
        unbalanced_factorization: bool = False,
    ) -> LoKr:
        """ΔW is 0: the second factor is, or (``use_scalar``) what everything is multiplied by.

        A factor is whole where the rank is at least half of its longer side, and with ``full_matrix``; where
        both are, alpha and ``rs_lora`` change nothing.
        """
        outputs, inputs, *kernel = weight.shape
        rows, columns = factorization(outputs, int(factor)), factorization(inputs, int(factor))
        (o1, o2), (i1, i2) = (rows[::-1] if unbalanced_factorization else rows), columns
        first_whole = full_matrix or not decompose_both or 2 * lora_dim >= max(o1, i1)
        second_whole = full_matrix or 2 * lora_dim >= max(o2, i2)
        tucker = use_tucker and has_kernel(weight.shape)
        sizes: dict[str, tuple[int, ...]]
        sizes = {"w1": (o1, i1)} if first_whole else {"w1_a": (o1, lora_dim), "w1_b": (lora_dim, i1)}
        if second_whole:
            sizes["w2"] = (o2, i2, *kernel)
        elif tucker:
            sizes |= {"w2_a": (lora_dim, o2), "w2_b": (lora_dim, i2), "t2": (lora_dim, lora_dim, *kernel)}
        else:
            sizes |= {"w2_a": (o2, lora_dim), "w2_b": (lora_dim, i2 * math.prod(kernel))}
        silent = () if use_scalar else ("w2", "w2_b")
        own = {name: (zeros if name in silent else kaiming)(weight, *size) for name, size in sizes.items()}
        whole = first_whole and second_whole
        return cls(**own, alpha=lora_dim if whole else trained_alpha(alpha, lora_dim, rs_lora))  # type: ignore[arg-type]

    # ---- sums -----------------------------------------------------------------------------------

    def sums_with(self, others: Sequence[Algorithm]) -> bool:
        """Where all have the same w1, or all the same w2."""
        lokrs = [other for other in others if isinstance(other, LoKr)]
        if len(lokrs) < len(others):
            return False
        return all(map(self._shares_first, lokrs)) or all(map(self._shares_second, lokrs))

    def summed(
        self, all_of: Sequence[Algorithm], coefficients: Sequence[float], shape: Sequence[int] | None
    ) -> LoKr:
        lokrs = [other for other in all_of if isinstance(other, LoKr)]
        halves = [lokr._whole() for lokr in lokrs]
        w1, w2 = halves[0]
        if all(map(self._shares_second, lokrs)):
            firsts = [c * first for c, (first, _) in zip(coefficients, halves, strict=True)]
            return LoKr.of(torch.stack(firsts).sum(0), w2, shape)
        # w1 holds each one's scale, so that is taken out of it before it is compared.
        scales = [float((first * w1).sum() / w1.square().sum().clamp_min(1e-300)) for first, _ in halves]
        seconds = [c * s * w for c, s, (_, w) in zip(coefficients, scales, halves, strict=True)]
        return LoKr.of(w1, torch.stack(seconds).sum(0), shape)

    def _whole(self) -> tuple[Tensor, Tensor]:
        """(w1 with the scale in it, w2) as matrices in float32."""
        device = next(value.device for _, value in self.tensors())
        made = self.structure(()).cast(device, torch.float32)
        first = made.first.delta()
        return first if made.scale == 1.0 else first * made.scale, made.second.delta()

    def _shares_first(self, other: LoKr) -> bool:
        return _equal((self.w1, self.w1_a, self.w1_b), (other.w1, other.w1_a, other.w1_b))

    def _shares_second(self, other: LoKr) -> bool:
        own, others = (self.w2, self.w2_a, self.w2_b, self.t2), (other.w2, other.w2_a, other.w2_b, other.t2)
        return _equal(own, others)

    # ---- fitting --------------------------------------------------------------------------------

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        """The nearest Kronecker product, w1 of the size to keep, of LyCORIS' factor, or of the best size.

        With a given size, the rule is about the ranks of w2, which is cut where that is smaller. Without,
        it is about those of a LoRA, whose bytes the LoKr may take: a file holds a single Kronecker term,
        and its shape is the only choice.
        """
        matrix, rule = request.change.delta(), request.rule
        rows, columns = request.size
        if request.sizes:
            *first_size, rank = request.sizes
            w1, w2 = nearest_kronecker(matrix, *first_size)
            return cls._fitted(cls.of(w1, w2, request.shape, rank or None), request)
        first = cls._asked_size(request)
        allowed = 0
        if first is None or rule.kind is RankKind.BUDGET:
            ranks = int(rule.value)
            if rule.kind not in COUNTED:
                ranks = choose(request.values, rule, request.size)
            elif rule.kind is RankKind.FIXED:
                ranks = min(ranks, rows, columns)
            allowed = ranks * (rows + columns)
        best: tuple[float, LoKr] | None = None
        for size in [first] if first is not None else _sizes(*_split(request)):
            w1, w2 = nearest_kronecker(matrix, *size)
            s = gram_spectrum(w2)
            if first is None or rule.kind is RankKind.BUDGET:
                rank = min(s.numel(), (allowed - w1.numel()) // sum(w2.shape))
                rank = s.numel() if w2.numel() + w1.numel() <= allowed else max(0, rank)
            else:
                rank = choose(s, rule, (w2.shape[0], w2.shape[1]))
            if rank < 1:
                continue
            kept = float(w1.square().sum()) * float(s[:rank].square().sum())
            if best is None or kept > best[0]:
                best = kept, cls.of(w1, w2, request.shape, rank)
        if best is None:  # not even w1 and one rank fit: the smallest there is
            w1, w2 = nearest_kronecker(matrix, *(divisor(size, -1) for size in _split(request)))
            best = 0.0, cls.of(w1, w2, request.shape, 1)
        return cls._fitted(best[1], request)

    @classmethod
    def _fitted(cls, lokr: LoKr, request: FitRequest) -> Fitted:
        numbers = sum(value.numel() for _, value in lokr.tensors())
        return Fitted(lokr, lokr.rank, lora_energy(request, numbers))

    @classmethod
    def _asked_size(cls, request: FitRequest) -> tuple[int, int] | None:
        """(o1, i1) where the request tells it."""
        if isinstance(request.like, LoKr):
            return request.like.first_shape
        rows, inputs = _split(request)
        factor = request.factor
        return (divisor(rows, factor), divisor(inputs, factor)) if factor else None

    @classmethod
    def prices(cls, request: FitRequest) -> list[Price]:
        """Of every size of w1, w2 whole and with each rank that is smaller."""
        matrix = request.change.delta()
        asked = cls._asked_size(request)
        # What a LoRA of rank one keeps; where even that is more, no size of a LoKr can compete.
        least = float(request.values[0]) ** 2 if request.rivals else 0.0
        offers = []
        for size in [asked] if asked is not None else _sizes(*_split(request)):
            if max(size) == 1:
                continue  # w2 is the change itself
            if request.rivals and kronecker_share(matrix, *size) * request.energy < least:
                continue
            w1, w2 = nearest_kronecker(matrix, *size)
            first = float(w1.double().square().sum())
            offers.append(
                Price(w1.numel() + w2.numel(), first * float(w2.double().square().sum()), (*size, 0))
            )
            kept = (
                leading_values(w2, request.most or min(w2.shape)).double().square().cumsum(0) * first
            ).tolist()
            offers += [
                Price(w1.numel() + rank * sum(w2.shape), energy, (*size, rank))
                for rank, energy in enumerate(kept, 1)
                if rank * sum(w2.shape) < w2.numel()
            ]
        return offers

    # ---- trainers -------------------------------------------------------------------------------

    def as_trained(self, name: str, facts: TrainingFacts) -> Iterator[tuple[LoKr, str]]:
        if self.rank is not None:
            corrected = rank_stabilised(name, self, facts)
            if corrected is not None:
                yield corrected
        elif facts.flag("rs_lora") and self.alpha is not None and self.fixed_scale is None:
            # Both factors whole: training forces alpha = r and scales by √r; r·√r is what the file says.
            note = "LoKr of whole matrices with rs_lora: scaled by √rank, which the file's alpha tells"
            yield replace(self, fixed_scale=abs(self.alpha) ** (1 / 3)), note

    def from_peft(self, settings: PeftSettings) -> PeftReading:
        if settings.is_of("LOKR") and self.w2 is not None and self.w2.dim() == 3:
            raise BadValueError(
                "PEFT multiplies the whole factors of a LoKr of a one-dimensional convolution across outputs "
                "and kernel, which is no Kronecker product. Train it with a smaller rank or with "
                "use_effective_conv2d"
            )
        return scaled_by_peft(self, settings)

    def to_peft(self) -> LoKr:
        return folded(self)


def _both(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    assert a is not None  # detection lets only complete pairs through
    assert b is not None
    return a, b


def _equal(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> bool:
    """Whether two lists of factors are there in the same places and hold the same numbers."""
    return all(
        (a is None) == (b is None) and (a is None or b is None or torch.equal(a.float(), b.float()))
        for a, b in zip(first, second, strict=True)
    )


def _split(request: FitRequest) -> tuple[int, int]:
    """(outputs, inputs) of the weight, which w1 and w2 share."""
    rows, columns = request.size
    return rows, columns if request.shape is None else request.shape[1]


def _sizes(rows: int, inputs: int) -> Iterator[tuple[int, int]]:
    yield from dict.fromkeys((divisor(rows, f), divisor(inputs, f)) for f in (-1, 2, 4, 8, 16, 32))
