"""What a layer stores besides changes of its weight: the kinds, and how a layer uses them.

A *magnitude* (DoRA, dora.py) rescales what the components make of a weight; a *reshape* (reshape.py)
enlarges the weight before anything is added. A layer has at most one of each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops.dtypes import to_compute
from . import _registry
from ._stored import Stored


class Modifier(Stored):
    """Defining a subclass with class data registers it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "algo" in cls.__dict__:
            _registry.register_modifier(cls)


class Magnitude(Modifier):
    """DoRA's magnitude d: W' = V·d/‖V‖ for V = W + ΔW."""

    @property
    @abstractmethod
    def vector(self) -> Tensor:
        """d, one number per output or per input channel, in its stored shape."""

    @property
    @abstractmethod
    def over_rows(self) -> bool:
        """Whether ‖V‖ is taken over all rows (input axis) instead of within each (output axis)."""

    @abstractmethod
    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` has as many channels on d's axis."""

    def ready(self, device: torch.device, dtype: torch.dtype) -> ReadyMagnitude:
        """d on ``device`` in ``dtype``."""
        return ReadyMagnitude(to_compute(self.vector, device, dtype).reshape(-1), self.over_rows)


@dataclass(frozen=True, eq=False)
class ReadyMagnitude:
    """d as a vector in the compute dtype, and the factors d/‖V‖ that follow from V's squares."""

    vector: Tensor
    over_rows: bool

    def row_factors(self, combined: Tensor, own: slice) -> Tensor:
        """(n, 1) factors for the rows ``own`` of V."""
        norms = torch.linalg.vector_norm(combined, dim=1)
        return (self.vector[own] / self._nonzero(norms)).unsqueeze(1)

    def column_factors(self, squares: Tensor) -> Tensor:
        """(∏…,) factors for all columns, from the sum over all rows of V² (∏…,).

        Kernel positions of one input channel share its norm.
        """
        channels = self.vector.numel()
        norms = squares.view(channels, -1).sum(1).sqrt()
        factors = self.vector / self._nonzero(norms)
        return factors.repeat_interleave(squares.numel() // channels)

    def _nonzero(self, norms: Tensor) -> Tensor:
        return norms + torch.finfo(norms.dtype).eps  # as LyCORIS does, so that equal results are equal
