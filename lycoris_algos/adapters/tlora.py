"""T-LoRA: a LoRA that starts as a part of the weight's own singular value decomposition.

    ΔW = α/r · (P·diag(λ)·Q − P₀·diag(λ₀)·Q₀)          P (o, r), Q (r, i), λ (r,)

P₀, λ₀, Q₀ are the values before training. What is trained here stores them, as ``base_p``, ``base_lambda``
and ``base_q``; LyCORIS, which calls them the same, does not save them. With its default initialisation
("principal") they are the r largest singular values and vectors of the weight that was trained on, so the
term is the best rank-r approximation of that weight and can be computed again; the change is then low-rank,
of rank 2r. The other initialisations (smallest, middle, random) of such a file cannot be recovered,
and P·diag(λ)·Q alone is not the change. Which one a file has shows in P: trained vectors stay close to the
space they started in. A file whose P has little in common with the principal space is refused.

All ranks are active, as in LyCORIS' merge: the schedule that switches ranks off by timestep is training's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadValueError, NeedsBaseError, ShapeMismatchError
from ..ops.dtypes import compute_dtype
from ..ops.starting import normal, pointwise
from ..structures import LowRank
from ..text import quoted
from ._base import FLOAT, Algorithm, Base, Shape, scale
from ._keys import KeySpec
from ._stored import number, require_equal, require_matrix, row_numel, tensor
from ._trainers import trained_alpha

# Share of P's space that must lie in the base's principal space. A random space of r in o dimensions shares
# r/o of it, the smallest or middle singular vectors share nothing; training moves far less than half of it.
_SAME_SPACE = 0.5


@dataclass(frozen=True, eq=False)
class TLoRA(Algorithm):
    """One layer's T-LoRA. Formula and shapes: this module."""

    algo: ClassVar[str] = "tlora"
    title: ClassVar[str] = "T-LoRA"
    reference: ClassVar[str] = "https://arxiv.org/abs/2507.05964"
    keys: ClassVar[KeySpec] = KeySpec(
        required=("q_layer.weight", "p_layer.weight", "lambda_layer"),
        together=(("base_q", "base_p", "base_lambda"),),
        optional=("alpha",),
    )
    trained_as: ClassVar[tuple[str, ...]] = ("tlora",)
    scheduled: ClassVar[bool] = True

    q: Tensor = tensor("q_layer.weight")
    p: Tensor = tensor("p_layer.weight")
    values: Tensor = tensor("lambda_layer")
    alpha: float | None = number("alpha")
    start_q: Tensor | None = tensor("base_q", optional=True, trained=False)
    start_p: Tensor | None = tensor("base_p", optional=True, trained=False)
    start_values: Tensor | None = tensor("base_lambda", optional=True, trained=False)

    @property
    def needs_weight(self) -> bool:  # type: ignore[override]
        return self.start_q is None

    @property
    def rank(self) -> int:
        return self.q.shape[0]

    def check(self) -> None:
        require_matrix("q_layer.weight", self.q)
        require_matrix("p_layer.weight", self.p)
        ranks = {"q_layer.weight": self.q.shape[0], "p_layer.weight": row_numel(self.p)}
        require_equal("rank", {**ranks, "lambda_layer": self.values.numel()})
        starts = {"base_q": self.start_q, "base_p": self.start_p, "base_lambda": self.start_values}
        for (name, start), own in zip(starts.items(), (self.q, self.p, self.values), strict=True):
            if start is not None and start.shape != own.shape:
                raise ShapeMismatchError(
                    f"'{name}' has the shape {tuple(start.shape)}, but what was trained {tuple(own.shape)}"
                )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.p.shape[0], row_numel(self.q)

    @property
    def exact_rank(self) -> int:
        return 2 * self.rank

    # ---- training -------------------------------------------------------------------------------

    @classmethod
    def begin(
        cls,
        weight: Tensor,
        *,
        lora_dim: int = 4,
        alpha: float | None = 1.0,
        sig_type: str = "principal",
        use_data_init: bool = True,
    ) -> TLoRA:
        """ΔW is 0: P, λ, Q are the largest singular values and vectors ("last", "middle": others) of W.

        Without ``use_data_init``, those of a random matrix. Ranks beyond those of W are of length 0.
        """
        matrix = weight.detach().float().flatten(1)
        if not use_data_init:
            matrix = normal(weight, *matrix.shape, std=1 / lora_dim)
        q, p, values = _singular(matrix, lora_dim, sig_type)
        one = pointwise(weight.shape)
        q, p, values = q.reshape(lora_dim, *weight.shape[1:]), p.reshape(*p.shape, *one), values[None]
        scaled = trained_alpha(alpha, lora_dim, False)
        return cls(q, p, values, scaled, q.clone(), p.clone(), values.clone())

    def masked(self, mask: Tensor) -> TLoRA:
        """What these ranks change: of the start as well as of the trained values."""
        mask = mask.reshape(-1)
        start = self.start_values
        masked = None if start is None else (start.reshape(-1) * mask).reshape(start.shape)
        values = (self.values.reshape(-1) * mask).reshape(self.values.shape)
        return replace(self, values=values, start_values=masked)

    def resumed(self, weight: Tensor) -> TLoRA:
        """With P₀, λ₀ and Q₀ of ``weight``, where they are not known.

        Raises BadValueError if it did not start from its largest singular values.
        """
        if self.start_q is not None:
            return self
        if weight.numel() != self.p.shape[0] * row_numel(self.q):
            raise ShapeMismatchError(f"T-LoRA was given a base weight of {tuple(weight.shape)}")
        matrix = weight.reshape(weight.shape[0], -1).to(compute_dtype(weight.dtype))
        q, p, values = _singular(matrix, self.rank, "principal")
        trained, start = self.p.detach().to(matrix).flatten(1), p.detach()
        shared = torch.linalg.matrix_norm(start.T @ torch.linalg.qr(trained)[0]).square()
        shared = shared / min(self.rank, *matrix.shape)
        if float(shared) < _SAME_SPACE:
            raise BadValueError(
                "this T-LoRA was not started from the largest singular values of this weight "
                f"(it shares {float(shared):.0%} of their space), and its file does not say from what: "
                "it cannot be applied. Use the model that it was trained on, or retrain with "
                "sig_type=principal"
            )
        home = self.p.device
        return replace(
            self,
            start_q=q.reshape(self.q.shape).to(home),
            start_p=p.reshape(self.p.shape).to(home),
            start_values=values.reshape(self.values.shape).to(home),
        )

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> LowRank:
        """Where it does not know its start: NeedsBaseError without the base weight, and as ``resumed``."""
        if self.start_q is None and base is None:
            raise NeedsBaseError("T-LoRA starts from the weight of the whole layer")
        known = self if base is None else self.resumed(base())
        assert known.start_q is not None
        assert known.start_p is not None
        assert known.start_values is not None
        wide = compute_dtype(dtype, known.start_p.dtype)
        factors = (known.p, known.q, known.start_p, known.start_q)
        p, q, start_p, start_q = (factor.flatten(1).to(wide) for factor in factors)
        values, start = (x.to(wide).reshape(1, -1) for x in (known.values, known.start_values))
        up = torch.cat((p * values, -start_p * start), dim=1)
        return LowRank(up.to(dtype), torch.cat((q, start_q)).to(dtype), scale(self.alpha, self.rank))


def _singular(matrix: Tensor, rank: int, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """(Q (r, i), P (o, r), λ (r,)) of ``matrix`` (o, i): the largest, the "last" or the "middle" ones.

    Zeros beyond as many as it has. Raises BadValueError for another word.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    count = min(rank, s.numel())
    starts = {"principal": 0, "last": s.numel() - count, "middle": (s.numel() - count) // 2}
    if which not in starts:
        raise BadValueError(f"T-LoRA's sig_type is {quoted(which)}, but must be one of {', '.join(starts)}")
    own = slice(starts[which], starts[which] + count)
    missing = rank - count
    return (
        functional.pad(vh[own], (0, 0, 0, missing)).contiguous(),
        functional.pad(u[:, own], (0, missing)).contiguous(),
        functional.pad(s[own], (0, missing)),
    )
