"""LoRA, and LoCon, its form for convolutions.

    ΔW = α/r · up·down              up (o, r), down (r, i·∏k)
    ΔW[p, q, k…] = α/r · Σ_ab up[p, a]·mid[a, b, k…]·down[b, q]     with a Tucker kernel mid (r, r, k…)

Stored shapes: up (o, r) or (o, r, 1…), down (r, i), (r, i, k…) or, with mid, (r, i, 1…); i is the number of
input channels of one group. DyLoRA of kohya's kind and extracted LoCon are stored the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..errors import BadValueError, ShapeMismatchError
from ..ops.dtypes import added, common_dtype, solving, times
from ..ops.lowrank import best_factors, product_svd
from ..ops.ranks import COUNTED, RankKind, choose, ranked_svd
from ..ops.starting import has_kernel, kaiming, pointwise, zeros
from ..ops.tucker import absorb_input, fit_tucker, tucker_energy
from ..structures import LowRank
from ..text import quoted
from ._base import FLOAT, Algorithm, Base, Shape, scale
from ._fitting import FitRequest, Fitted, Price
from ._keys import KeySpec
from ._peft import folded, scaled_by_peft
from ._range import filling_range
from ._stored import number, require_equal, require_matrix, row_numel, tensor
from ._trained import PeftReading, PeftSettings, TrainingFacts
from ._trainers import rank_stabilised, trained_alpha

if TYPE_CHECKING:
    from typing_extensions import Self

_DYLORA_BLOCK = 4  # LyCORIS' default block_size
# PEFT takes these out of the base weight before it trains, so that what it stores begins at another weight.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, eq=False)
class LoRA(Algorithm):
    """One layer's LoRA. Formula and shapes: this module."""

    algo: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    reference: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("lora_up.weight", "lora_down.weight"), optional=("lora_mid.weight", "alpha", "scale")
    )

    universal: ClassVar[bool] = True
    trained_as: ClassVar[tuple[str, ...]] = ("lora", "locon")

    up: Tensor = tensor("lora_up.weight")
    down: Tensor = tensor("lora_down.weight")
    mid: Tensor | None = tensor("lora_mid.weight", optional=True)
    alpha: float | None = number("alpha")
    fixed_scale: float | None = number("scale")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def check(self) -> None:
        for name, value in self.tensors():
            require_matrix(name, value)
        if row_numel(self.up) != self.up.shape[1]:
            raise ShapeMismatchError(
                f"'lora_up.weight' has the shape {tuple(self.up.shape)}: only the other factor has a kernel"
            )
        ranks = {"lora_up.weight": self.up.shape[1], "lora_down.weight": self.down.shape[0]}
        if self.mid is not None:
            ranks["lora_mid.weight"] = self.mid.shape[0]
            ranks["lora_mid.weight (second axis)"] = self.mid.shape[1]
        require_equal("rank", ranks)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        kernel = 1 if self.mid is None else math.prod(self.mid.shape[2:])
        return self.up.shape[0], row_numel(self.down) * kernel

    @property
    def weight_shape(self) -> tuple[int, ...]:
        kernel = () if self.mid is None else self.mid.shape[2:]
        inputs = self.down.shape[1:] if self.mid is None else self.down.shape[1:2]
        return (self.up.shape[0], *inputs, *kernel)

    @property
    def exact_rank(self) -> int:
        return self.rank

    @classmethod
    def of(cls, up: Tensor, down: Tensor, shape: Sequence[int] | None = None) -> LoRA:
        """The LoRA with ΔW = up (o, r)·down (r, i·∏k), stored as files of a weight of ``shape`` hold it."""
        if shape is not None and len(shape) > 2:
            up = up.reshape(*up.shape, *(1 for _ in shape[2:]))
            down = down.reshape(-1, *shape[1:])
        return cls(up.contiguous(), down.contiguous(), None, float(down.shape[0]))

    def filling(self) -> LoRA:
        return filling_range(self)

    def multiplied(self, factor: Factor) -> LoRA:
        return replace(self, up=times(self.up, factor))

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> LowRank:
        up, down = self.up.flatten(1), self.down.flatten(1)
        if self.mid is not None:
            down = absorb_input(solving(self.mid), solving(down)).to(dtype)
        return LowRank(up, down, scale(self.alpha, self.rank, self.fixed_scale))

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
    ) -> Self:
        """ΔW is 0: the outer factor is, or (``use_scalar``) what everything is multiplied by."""
        outputs, inputs, *kernel = weight.shape
        one = pointwise(weight.shape)
        tucker = use_tucker and has_kernel(weight.shape)
        up = (kaiming if use_scalar else zeros)(weight, outputs, lora_dim, *one)
        down = kaiming(weight, lora_dim, inputs, *(one if tucker else kernel))
        mid = kaiming(weight, lora_dim, lora_dim, *kernel) if tucker else None
        return cls(up, down, mid, trained_alpha(alpha, lora_dim, rs_lora))

    def masked(self, mask: Tensor) -> LoRA:
        return replace(self, up=self.up * mask.reshape(1, -1, *pointwise(self.up.shape)))

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        """By singular values; exact for the rule EXACT. With a Tucker kernel where that is asked."""
        kernel = request.kernel
        if request.tucker and kernel > 1:
            return cls._fit_tucker(request, kernel)
        up, down = _factors(request)
        return Fitted(cls.of(up, down, request.shape), down.shape[0])

    @classmethod
    def _fit_tucker(cls, request: FitRequest, kernel: int) -> Fitted:
        """By higher-order orthogonal iteration; the rank is the one that the rule gives two factors."""
        shape = request.shape
        assert shape is not None
        matrix = request.change.delta()
        counted = request.rule.kind in COUNTED
        rank = int(request.rule.value) if counted else ranked_svd(matrix, request.rule)[1].numel()
        up, core, down = fit_tucker(matrix.reshape(shape[0], -1, kernel), rank)
        ones = (1,) * len(shape[2:])
        rank = core.shape[0]
        mid = core.reshape(rank, rank, *shape[2:])
        stored = cls(up.reshape(*up.shape, *ones), down.reshape(*down.shape, *ones), mid, float(rank))
        return Fitted(stored, rank)

    @classmethod
    def prices(cls, request: FitRequest) -> list[Price]:
        rows, columns = request.size
        kernel = request.kernel
        if request.tucker and kernel > 1:
            inputs = columns // kernel
            kept = tucker_energy(request.change.delta().reshape(rows, inputs, kernel), request.values)
            ranks = range(1, len(kept) + 1)
            numbers = [rank * (rows + inputs + rank * kernel) for rank in ranks]
        else:
            kept = request.values.double().square().cumsum(0).tolist()
            numbers = [rank * (rows + columns) for rank in range(1, len(kept) + 1)]
        return [Price(n, k, (rank,)) for rank, (n, k) in enumerate(zip(numbers, kept, strict=True), 1)]

    def cut(self, rank: int, nested: str | None) -> LoRA:
        """The first ranks of a DyLoRA, else the best ones by singular value, at the same scale."""
        if nested is not None and self.mid is None:
            return self._first(rank, nested)
        kernel = self.down.shape[1:] if self.mid is None else (self.down.shape[1], *self.mid.shape[2:])
        plain = self.structure(())
        up, down = best_factors(plain.up.float(), plain.down.float(), rank)
        alpha = None if self.alpha is None else self.alpha * down.shape[0] / self.rank
        up = up.reshape(*up.shape, *self.up.shape[2:])
        return LoRA(up, down.reshape(-1, *kernel), None, alpha, self.fixed_scale)

    def _first(self, rank: int, nested: str) -> LoRA:
        """The first ranks, scaled as training scaled them: α/n of LyCORIS, α/r·√(r/n) of kohya."""
        alpha = self.alpha
        if alpha is not None and nested == "kohya":
            alpha *= math.sqrt(rank / self.rank)
        return replace(self, up=self.up[:, :rank], down=self.down[:rank], alpha=alpha)

    # ---- rows ---------------------------------------------------------------------------------------

    def row_part(self, start: int, count: int) -> LoRA:
        return replace(self, up=self.up.narrow(0, start, count).clone())

    def of_row_parts(self, parts: Sequence[tuple[int, LoRA]], total: int) -> LoRA | None:
        own = [part for _, part in parts]
        if any(part.mid is not None or part.down.shape[1:] != self.down.shape[1:] for part in own):
            return None
        scales = {scale(part.alpha, part.rank, part.fixed_scale) for part in own}
        (same,) = scales if len(scales) == 1 else (1.0,)
        own = own if len(scales) == 1 else [folded(part) for part in own]
        first = own[0].down
        shared = all(part.down.shape == first.shape and torch.equal(part.down, first) for part in own)
        rank = first.shape[0] if shared else sum(part.rank for part in own)
        dtype = common_dtype([part.up for part in own])
        up = self.up.new_zeros((total, rank, *self.up.shape[2:]), dtype=dtype)
        column = 0
        for (start, _), part in zip(parts, own, strict=True):
            block = up[start : start + part.up.shape[0], column : column + part.rank]
            block.copy_(added(block, part.up))
            column += 0 if shared else part.rank
        wanted = common_dtype([part.down for part in own])
        down = first.clone() if shared else torch.cat([part.down.to(wanted) for part in own])
        return LoRA(up, down, None, same * rank)

    # ---- trainers -------------------------------------------------------------------------------

    def as_trained(self, name: str, facts: TrainingFacts) -> Iterator[tuple[LoRA, str]]:
        current = self
        for correction in (_dylora, rank_stabilised, _split_qkv):
            corrected = correction(name, current, facts)
            if corrected is not None:
                current = corrected[0]
                yield corrected

    def from_peft(self, settings: PeftSettings) -> PeftReading:
        start = settings["init_lora_weights"]
        if self.alpha is None and isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            raise BadValueError(
                f"PEFT began it with {quoted(start)}, which changes the base weight too, so it does not fit "
                "the unchanged model. PiSSA, OLoRA, CorDA and LoRA-GA become an ordinary LoRA when PEFT "
                "saves them with path_initial_model_for_weight_conversion"
            )
        return scaled_by_peft(self, settings)

    def to_peft(self) -> LoRA | None:
        return folded(self) if self.mid is None else None


def _factors(request: FitRequest) -> tuple[Tensor, Tensor]:
    change, rule = request.change, request.rule
    if isinstance(change, LowRank):
        up, down = change.factors()
        exact = rule.kind is RankKind.EXACT and down.shape[0] <= min(change.size)
        if exact or (rule.kind in COUNTED and down.shape[0] <= rule.value):
            return up, down
        u, s, vh = product_svd(up, down)
        rank = choose(s, rule, change.size)
    else:
        u, s, vh = ranked_svd(change.delta(), rule)
        rank = s.numel()
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vh[:rank] * root[:, None]


def _dylora(name: str, lora: LoRA, facts: TrainingFacts) -> tuple[LoRA, str] | None:
    """LyCORIS divides alpha by the number of blocks where the file's rank counts ranks."""
    if facts.algo != "dylora" or lora.alpha is None:
        return None
    try:
        block = int(float(facts.args.get("block_size", _DYLORA_BLOCK)))
    except (ValueError, OverflowError):
        return None
    if block < 2:
        return None
    note = f"DyLoRA of LyCORIS with block_size {block}: alpha is {block} times what the file says"
    return replace(lora, alpha=lora.alpha * block), note


def _split_qkv(name: str, lora: LoRA, facts: TrainingFacts) -> tuple[LoRA, str] | None:
    """kohya trains q, k, v (and the MLP beside them) apart and stores them as one, with one part's alpha."""
    if not facts.flag("split_qkv") or lora.alpha is None:
        return None
    parts = 3 if name.endswith(("_qkv", ".qkv")) else 4 if name.endswith("linear1") else 1
    resized = facts.rank is not None and lora.rank != parts * facts.rank
    if parts == 1 or resized:
        return None
    note = f"kohya's split_qkv: alpha belongs to one of {parts} parts, so it counts {parts} times"
    return replace(lora, alpha=lora.alpha * parts), note
