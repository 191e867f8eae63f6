"""OFT as PEFT (version 2) and OneTrainer store it: the input channels are rotated in blocks.

    Q from ``oft_R.weight`` (n or 1, b·(b−1)/2), the upper triangles of skew-symmetric matrices, row by row
    R = I + 2Q + 2Q² + 2Q³ + Q⁴            (the Cayley transform's series, which both train by default)

    Linear:       W'[o, n·b + c] = Σ_k W[o, n·b + k]·R[n, c, k]
    convolution:  W'[o, n·b + c] = Σ_k W[o, n·b + k]·R[n, k, c]      over the flattened input and kernel

One block for all (``block_share``) is stored once. OneTrainer's scaled variant has the flag
``oft_R.scaled_oft``, and then divides the triangles by 2·√(b−1). There is no alpha.

PEFT turns the inputs of a convolution as it does those of a Linear, and has R = (I − Q)(I + Q)⁻¹ where its
configuration says ``use_cayley_neumann: false``. A file's tensors tell neither: network/peft_config.py finds
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
from ..ops.dtypes import to_compute
from ..ops.orthogonal import block_size, cayley, cayley_neumann, skew_from_triangle
from ..ops.rows import block_rows, row_blocks
from ..ops.scratch import scratch
from ._base import Core
from ._keys import KeySpec
from ._stored import number, tensor

#: Values of ``oft_R.peft``.
PEFT_SERIES, PEFT_EXACT, PEFT_OLD_SERIES = 1.0, 2.0, 3.0


@dataclass(frozen=True, eq=False)
class OFTv2(Core):
    """One layer's input-side OFT. Formula and shapes: this module."""

    algo: ClassVar[str] = "oft_v2"
    title: ClassVar[str] = "OFTv2"
    reference: ClassVar[str] = "https://arxiv.org/abs/2506.19847"
    keys: ClassVar[KeySpec] = KeySpec(required=("oft_R.weight",), optional=("oft_R.scaled_oft", "oft_R.peft"))
    needs_weight: ClassVar[bool] = True

    triangles: Tensor = tensor("oft_R.weight")
    scaled: float | None = number("oft_R.scaled_oft")
    peft: float | None = number("oft_R.peft")
    #: R − I (n, b, b) as it multiplies rows from the right, once it is known; nothing that a file says.
    change: Tensor | None = None

    @property
    def _size(self) -> int:
        return block_size(self.triangles.shape[1])

    def check(self) -> None:
        if self.triangles.dim() != 2 or self._size < 2:
            raise ShapeMismatchError(
                f"'oft_R.weight' has the shape {tuple(self.triangles.shape)}, but must hold the upper "
                "triangles of square blocks"
            )
        if self.peft not in (None, PEFT_SERIES, PEFT_EXACT, PEFT_OLD_SERIES):
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

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> OFTv2:
        triangles = to_compute(self.triangles, device, dtype)
        if self.change is not None:
            return replace(self, triangles=triangles, change=to_compute(self.change, device, dtype))
        scaled = triangles / (2 * math.sqrt(self._size - 1)) if self.scaled else triangles
        skew = skew_from_triangle(scaled)
        if self.peft == PEFT_EXACT:
            rotation = cayley(-skew)
        else:
            rotation = cayley_neumann(skew, last=2.0 if self.peft == PEFT_OLD_SERIES else 1.0)
        change = rotation - torch.eye(self._size, dtype=dtype, device=device)
        change = change.mT if len(shape) == 2 or self.peft is not None else change
        blocks = math.prod(shape[1:]) // self._size
        return replace(self, triangles=triangles, change=change.expand(blocks, -1, -1))

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        assert weight is not None  # needs_weight
        assert self.change is not None
        blocks = weight.reshape(weight.shape[0], self.change.shape[0], -1)
        return torch.einsum("onk,nkc->onc", blocks, self.change).reshape(weight.shape)

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        assert self.change is not None
        blocks, size = self.change.shape[:2]
        count, columns = rows.shape
        step = block_rows(count, columns, rows.dtype, rows.device)
        with scratch((blocks * step * size,), rows.dtype, rows.device) as buffer:
            for first, last in row_blocks(count, step):
                own = base[first:last].view(last - first, blocks, size).transpose(0, 1)
                into = buffer[: own.numel()].view(own.shape)
                turned = torch.bmm(own, self.change, out=into).transpose(0, 1)
                rows[first:last].view(turned.shape).add_(turned, alpha=multiplier)
