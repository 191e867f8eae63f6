"""OFT as PEFT (version 2) and OneTrainer store it: the input channels are rotated in blocks.

    Q from ``oft_R.weight`` (n or 1, b·(b−1)/2), the upper triangles of skew-symmetric matrices, row by row
    R = I + 2Q + 2Q² + 2Q³ + Q⁴            (the Cayley transform's series, which both train by default)

    Linear:       W'[o, n·b + c] = Σ_k W[o, n·b + k]·R[n, c, k]
    convolution:  W'[o, n·b + c] = Σ_k W[o, n·b + k]·R[n, k, c]      over the flattened input and kernel

One block for all (``block_share``) is stored once. OneTrainer's scaled variant has the flag
``oft_R.scaled_oft``, and then divides the triangles by 2·√(b−1). There is no alpha.

PEFT turns the inputs of a convolution as it does those of a Linear, and has R = (I − Q)(I + Q)⁻¹ where its
configuration says ``use_cayley_neumann: false``. A file's tensors tell neither: ``from_peft`` finds
out, and ``oft_R.peft`` holds it in files that this library writes: 1 for the series, 2 for the exact
transform, 3 for the series as it was before PEFT 0.18, with 2Q⁴ at its end.
With a larger kernel PEFT turns patches of the image and adds up where they overlap: no change of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError, ShapeMismatchError
from ..ops.dtypes import solving
from ..ops.orthogonal import block_size, cayley, cayley_neumann, skew_from_triangle
from ..structures import ColumnRotation
from ._base import FLOAT, Algorithm, Base, Shape
from ._keys import KeySpec
from ._stored import number, tensor
from ._trained import PeftReading, PeftSettings

# Values of ``oft_R.peft``.
_PEFT_SERIES, _PEFT_EXACT, _PEFT_OLD_SERIES = 1.0, 2.0, 3.0
_TERMS = 5  # of the series that OFT is trained with by default
# PEFT 0.18 changed that series, and advises to train again; a file means the one it was trained with.
_NEW_SERIES = (0, 18)
_EPS = 6e-5  # PEFT's default of how far a constrained OFT may turn


@dataclass(frozen=True, eq=False)
class OFTv2(Algorithm):
    """One layer's input-side OFT. Formula and shapes: this module."""

    algo: ClassVar[str] = "oft_v2"
    title: ClassVar[str] = "OFTv2"
    reference: ClassVar[str] = "https://arxiv.org/abs/2506.19847"
    keys: ClassVar[KeySpec] = KeySpec(required=("oft_R.weight",), optional=("oft_R.scaled_oft", "oft_R.peft"))
    needs_weight: ClassVar[bool] = True

    triangles: Tensor = tensor("oft_R.weight")
    scaled: float | None = number("oft_R.scaled_oft")
    peft: float | None = number("oft_R.peft")

    @property
    def _size(self) -> int:
        return block_size(self.triangles.shape[1])

    def check(self) -> None:
        if self.triangles.dim() != 2 or self._size < 2:
            raise ShapeMismatchError(
                f"'oft_R.weight' has the shape {tuple(self.triangles.shape)}, but must hold the upper "
                "triangles of square blocks"
            )
        if self.peft not in (None, _PEFT_SERIES, _PEFT_EXACT, _PEFT_OLD_SERIES):
            raise BadValueError(f"'oft_R.peft' is {self.peft}, but must be 1, 2 or 3")

    @property
    def matrix_shape(self) -> tuple[None, None]:
        return None, None

    def fits(self, shape: Sequence[int]) -> None:
        columns, blocks = math.prod(shape[1:]), self.triangles.shape[0]
        if len(shape) < 2 or columns % self._size or blocks not in (1, columns // self._size):
            raise ShapeMismatchError(
                f"OFTv2 rotates {blocks} blocks of {self._size} input channels, "
                f"but the weight is {'×'.join(map(str, shape))}"
            )
        if self.peft is not None and math.prod(shape[2:]) > 1:
            raise ShapeMismatchError(
                "PEFT's OFT of a convolution turns overlapping patches of the image, which is no change of "
                f"the weight {'×'.join(map(str, shape))}; only that of a kernel of one position is"
            )

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> ColumnRotation:
        triangles = solving(self.triangles)
        scaled = triangles / (2 * math.sqrt(self._size - 1)) if self.scaled else triangles
        skew = skew_from_triangle(scaled)
        if self.peft == _PEFT_EXACT:
            rotation = cayley(-skew)
        else:
            rotation = cayley_neumann(skew, last=2.0 if self.peft == _PEFT_OLD_SERIES else 1.0)
        change = rotation - torch.eye(self._size, dtype=rotation.dtype, device=rotation.device)
        change = change.mT if len(shape) == 2 or self.peft is not None else change
        return ColumnRotation(change.to(dtype).contiguous(), math.prod(shape[1:]) // self._size)

    def from_peft(self, settings: PeftSettings) -> PeftReading:
        if self.peft is not None or not settings.is_of("OFT"):
            return PeftReading(self)
        exact, terms = settings["use_cayley_neumann"] is False, settings.number("num_cayley_neumann_terms")
        if not exact and terms not in (None, _TERMS):
            raise BadValueError(
                f"PEFT trained its OFT with {terms:g} terms of the Cayley transform's series; only {_TERMS}, "
                "which is the default, and the exact transform are known"
            )
        triangles, eps = self.triangles, settings.number("eps")
        if settings["coft"] is True:
            triangles = _constrained(triangles, _EPS if eps is None else eps)
        if exact:
            peft, how = _PEFT_EXACT, ", by the exact transform"
        elif settings.is_older_than(*_NEW_SERIES):
            peft, how = _PEFT_OLD_SERIES, ", by the series of its versions before 0.18"
        else:
            peft, how = _PEFT_SERIES, ""
        return PeftReading(replace(self, triangles=triangles, peft=peft), f"OFT as PEFT turns it{how}")


def _constrained(triangles: Tensor, eps: float) -> Tensor:
    """``triangles`` as training's forward shrinks them: no skew matrix has a norm above eps/√n."""
    values = triangles.to(torch.float32)
    norms = math.sqrt(2.0) * torch.linalg.vector_norm(values, dim=1, keepdim=True)
    limit = eps / math.sqrt(len(values))
    return (values * torch.clamp(limit / norms, max=1.0)).to(triangles.dtype)
