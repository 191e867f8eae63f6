"""HRA (PEFT): the inputs of a layer are reflected, one Householder reflection after the other.

    W' = W · H_1·H_2 … H_r          H_n = I − 2·u_n·u_nᵀ, u_n of length 1

``hra_u`` (i·∏k, r) holds the u_n of any length as its columns, over the flattened input and kernel. Where
PEFT's configuration says ``apply_GS``, it makes them orthogonal first (Gram-Schmidt), which no tensor
tells; orthogonal vectors mean the same without it, so they are kept as that. There is no alpha.

The product of the reflections is I − U·T·Uᵀ with T⁻¹ = I/2 + the strict upper triangle of UᵀU (Schreiber and
Van Loan, doi 10.1137/0910005), so that it changes no more than r directions of W.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError, ShapeMismatchError
from ..ops.dtypes import solving
from ..structures import Product
from ._base import FLOAT, Algorithm, Base, Shape
from ._keys import KeySpec
from ._stored import tensor
from ._trained import PeftReading, PeftSettings


@dataclass(frozen=True, eq=False)
class HRA(Algorithm):
    """One layer's reflections. Formula and shapes: this module."""

    algo: ClassVar[str] = "hra"
    title: ClassVar[str] = "HRA"
    reference: ClassVar[str] = "https://arxiv.org/abs/2405.17484"
    keys: ClassVar[KeySpec] = KeySpec(required=("hra_u",))
    needs_weight: ClassVar[bool] = True

    vectors: Tensor = tensor("hra_u")

    def check(self) -> None:
        if self.vectors.dim() != 2 or 0 in self.vectors.shape:
            raise ShapeMismatchError(
                f"'hra_u' has the shape {tuple(self.vectors.shape)}, but must hold vectors as its columns"
            )
        if not self.vectors.is_meta and not bool(self.vectors.float().square().sum(0).all()):
            raise BadValueError("'hra_u' holds a vector of zeros, which is no direction to reflect")

    @property
    def matrix_shape(self) -> tuple[None, int]:
        return None, self.vectors.shape[0]

    @property
    def exact_rank(self) -> int:
        return self.vectors.shape[1]

    def facts(self) -> dict[str, float]:
        return {"reflections": self.vectors.shape[1]}

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Product:
        vectors = solving(self.vectors)
        unit = vectors / vectors.norm(dim=0)
        half = torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device) / 2
        inverse = half + torch.triu(unit.T @ unit, 1)
        # −U·T, by solving from the right.
        left = torch.linalg.solve_triangular(inverse, -unit, upper=True, left=False)
        return Product(left.to(dtype), unit.T.to(dtype))

    def from_peft(self, settings: PeftSettings) -> PeftReading:
        if not settings.is_of("HRA") or settings["apply_GS"] is not True:
            return PeftReading(self)
        orthogonal = torch.linalg.qr(solving(self.vectors))[0].float()
        return PeftReading(replace(self, vectors=orthogonal), "HRA whose vectors PEFT makes orthogonal")

    def to_peft(self) -> HRA:
        return self
