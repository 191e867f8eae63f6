"""What a layer does with its weight: a linear map of the last axis, or a convolution of the last ones.

Structures use it to act on activations: with another matrix in the weight's place, or on the channels that
go in or come out, which for a convolution are one axis among several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from ..text import Brief

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    3: functional.conv1d,
    4: functional.conv2d,
    5: functional.conv3d,
}


@dataclass(frozen=True, eq=False)
class LayerOperation(Brief):
    """A Linear or a convolution of 1 to 3 dimensions, without its bias.

    ``weight`` is (o, i) or (o, i / groups, k…); ``options`` are stride, padding, dilation and groups as
    ``torch.nn.functional.conv2d`` takes them. Inputs are (…, i), or (N, i, …) for a convolution.
    """

    weight: Tensor
    options: Any = None
    #: (x, y), where the layer's own output y for an input x has been computed already.
    known: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's own output for ``x``, without a bias."""
        if self.known is not None and self.known[0] is x:
            return self.known[1]
        return self._run(x, self.weight)

    def through(self, x: Tensor, matrix: Tensor) -> Tensor:
        """The same with ``matrix`` (n, c) in the place of the weight: n channels come out.

        c is the number of columns of the weight as a matrix, or fewer input channels at all kernel positions.
        """
        return self._run(x, matrix.reshape(matrix.shape[0], -1, *self.kernel))

    @property
    def matrix(self) -> Tensor:
        """W as a matrix (o, i·∏k)."""
        return self.weight.reshape(self.weight.shape[0], -1)

    @property
    def kernel(self) -> Sequence[int]:
        """The kernel's shape; () for a Linear."""
        return self.weight.shape[2:]

    @property
    def grouped(self) -> bool:
        """Whether outputs see a part of the inputs only."""
        return bool(self.options) and self.options.get("groups", 1) != 1

    @property
    def pointwise(self) -> bool:
        """Whether the columns of W are the input channels themselves."""
        return math.prod(self.kernel) == 1 and not self.grouped

    def mixed(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``x`` with its channels (n) mapped to others by ``matrix`` (m, n)."""
        ones = tuple(1 for _ in self.kernel)
        if not ones:
            return functional.linear(x, matrix)
        return _CONVOLUTIONS[2 + len(ones)](x, matrix.reshape(*matrix.shape, *ones))  # no axis is moved

    def scaled(self, x: Tensor, vector: Tensor) -> Tensor:
        """``x`` with each of its channels times a number of ``vector`` (n,)."""
        return x * vector.reshape(-1, *(1 for _ in self.kernel))

    @property
    def channel_axis(self) -> int:
        """The axis of inputs and outputs that holds the channels, from the end."""
        return -1 - len(self.kernel)

    def split(self, x: Tensor, *sizes: int) -> Tensor:
        """``x`` with its axis of channels cut into ``sizes``, moved to the end."""
        channels_last = x.movedim(self.channel_axis, -1)
        return channels_last.reshape(*channels_last.shape[:-1], *sizes)

    def joined(self, x: Tensor, axes: int) -> Tensor:
        """The inverse of ``split``: the last ``axes`` axes are the channels."""
        return x.flatten(-axes).movedim(-1, self.channel_axis)

    def _run(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.kernel:
            return functional.linear(x, weight)
        return _CONVOLUTIONS[weight.dim()](x, weight, **(self.options or {}))
