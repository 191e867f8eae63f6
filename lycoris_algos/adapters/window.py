"""Some rows of a layer, for a model that stores the layer's weight in pieces.

A file may hold one adapter for queries, keys and values together where a model has a weight for each. Row o
of ΔW is then wanted as row o − start of a piece. The factors stay as they are; only where rows are counted
from changes. That is exact for every algorithm whose rows depend on no rows of the weight outside the piece,
and ``LayerAdapter.rows`` refuses the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ._keys import KeySpec
from ._modifiers import Modifier


@dataclass(frozen=True, eq=False)
class Window(Modifier):
    """Rows ``start`` to ``start + count`` of a layer that has ``total`` outputs; never in a file."""

    algo: ClassVar[str] = "window"
    title: ClassVar[str] = "piece"
    reference: ClassVar[str] = "https://github.com/lycoris-nodes/lycoris-nodes"
    keys: ClassVar[KeySpec] = KeySpec()

    start: int
    count: int
    total: int

    def check(self) -> None:
        if not (self.start >= 0 and self.count > 0 and self.start + self.count <= self.total):
            raise ShapeMismatchError(
                f"rows {self.start} to {self.start + self.count} lie outside a layer of {self.total} outputs"
            )

    def whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the layer's weight, from that of the piece. Raises ShapeMismatchError."""
        if not shape or shape[0] != self.count:
            raise ShapeMismatchError(
                f"{self.count} rows of the layer belong here, but the weight is {'×'.join(map(str, shape))}"
            )
        return (self.total, *shape[1:])

    def widened(self, piece: Tensor) -> Tensor:
        """``piece`` with zeros in the place of the layer's other rows."""
        above = piece.new_zeros((self.start, *piece.shape[1:]))
        below = piece.new_zeros((self.total - self.start - self.count, *piece.shape[1:]))
        return torch.cat((above, piece, below))

    def narrowed(self, whole: Tensor) -> Tensor:
        """The piece's rows of ``whole``."""
        return whole[self.start : self.start + self.count]
