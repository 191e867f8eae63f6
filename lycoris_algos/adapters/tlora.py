"""T-LoRA: a LoRA that starts as a part of the weight's own singular value decomposition.

    ΔW = α/r · (P·diag(λ)·Q − P₀·diag(λ₀)·Q₀)          P (o, r), Q (r, i), λ (r,)

P₀, λ₀, Q₀ are the values before training, and LyCORIS does not save them. With its default initialisation
("principal") they are the r largest singular values and vectors of the weight that was trained on, so the
term is the best rank-r approximation of that weight and can be computed again; the change is then low-rank,
of rank 2r. The other initialisations (smallest, middle, random) cannot be recovered,
and P·diag(λ)·Q alone is not the change. Which one a file has shows in P: trained vectors stay close to the
space they started in. A file whose P has little in common with the principal space is refused.

All ranks are active, as in LyCORIS' merge: the schedule that switches ranks off by timestep is training's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError, NeedsBaseError, ShapeMismatchError
from ..ops.dtypes import compute_dtype
from ..structures import LowRank
from ._base import FLOAT, Algorithm, Base, Shape, scale
from ._keys import KeySpec
from ._stored import number, require_equal, require_matrix, row_numel, tensor

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
        required=("q_layer.weight", "p_layer.weight", "lambda_layer"), optional=("alpha",)
    )
    needs_weight: ClassVar[bool] = True

    q: Tensor = tensor("q_layer.weight")
    p: Tensor = tensor("p_layer.weight")
    values: Tensor = tensor("lambda_layer")
    alpha: float | None = number("alpha")

    @property
    def rank(self) -> int:
        return self.q.shape[0]

    def check(self) -> None:
        require_matrix("q_layer.weight", self.q)
        require_matrix("p_layer.weight", self.p)
        ranks = {"q_layer.weight": self.q.shape[0], "p_layer.weight": row_numel(self.p)}
        require_equal("rank", {**ranks, "lambda_layer": self.values.numel()})

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.p.shape[0], row_numel(self.q)

    @property
    def exact_rank(self) -> int:
        return 2 * self.rank

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> LowRank:
        """Raises NeedsBaseError without the base weight, BadValueError if it did not start as principal."""
        if base is None:
            raise NeedsBaseError("T-LoRA starts from the weight of the whole layer")
        weight = base()
        if weight.numel() != self.p.shape[0] * row_numel(self.q):
            raise ShapeMismatchError(f"T-LoRA was given a base weight of {tuple(weight.shape)}")
        matrix = weight.reshape(weight.shape[0], -1).to(compute_dtype(weight.dtype))
        p, q = (factor.to(matrix).flatten(1) for factor in (self.p, self.q))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        rank = min(self.rank, s.numel())
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
        shared = torch.linalg.matrix_norm(u.detach().T @ torch.linalg.qr(p.detach())[0]).square() / rank
        if float(shared) < _SAME_SPACE:
            raise BadValueError(
                "this T-LoRA was not started from the largest singular values of this weight "
                f"(it shares {float(shared):.0%} of their space), and its file does not say from what: "
                "it cannot be applied. Use the model that it was trained on, or retrain with "
                "sig_type=principal"
            )
        up = torch.cat((p * self.values.to(matrix).reshape(1, -1), -u * s), dim=1)
        down = torch.cat((q, vh))
        home = self.p.device
        return LowRank(up.to(home, dtype), down.to(home, dtype), scale(self.alpha, self.rank))
