"""DoRA: a trained magnitude beside the trained direction, on any algorithm.

    V = W + ΔW          W' = V · d / ‖V‖

Output axis (LyCORIS' default since 3.2): d has one number per output and ‖V‖ is taken over everything else.
Input axis (before that, and OneTrainer's default): one per input channel, ‖V‖ over outputs and kernel. The
shape of ``dora_scale`` tells which: (o, 1…) or (o,) against (1, i, 1…). PEFT's ``lora_magnitude_vector`` and
ai-toolkit's ``magnitude`` are on the output axis always, also where PEFT stores that of a convolution as
(1, o, 1, 1).

At multiplier m the weight is W + m·(W' − W), as for every other algorithm. LyCORIS scales only d/‖V‖ − 1
by m, and so changes the weight at m = 0; ComfyUI divides by ‖W‖ on the output axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.directions import first_scales, fit_directions
from ..ops.dtypes import common_dtype
from ..ops.lowrank import leading_svd, leading_values
from ..ops.ranks import ranked_svd
from ..structures import ColumnDecomposed, RowDecomposed, Structure
from ._base import Magnitude
from ._fitting import FitRequest, Fitted, Price
from ._keys import KeySpec
from ._stored import tensor
from .lora import LoRA

# The share of a change that has to be along the rows of W, for DoRA to be worth its time.
_ALONG = 0.02
_REFERENCE = "https://arxiv.org/abs/2402.09353"


@dataclass(frozen=True, eq=False)
class DoRA(Magnitude):
    """``dora_scale``, on either axis."""

    algo: ClassVar[str] = "dora"
    title: ClassVar[str] = "DoRA"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("dora_scale",))

    scale: Tensor = tensor("dora_scale")

    @property
    def over_rows(self) -> bool:
        # (1, 1) is either; both axes then give the same, since one of them has a single channel.
        return self.scale.dim() > 1 and self.scale.shape[0] == 1

    def check(self) -> None:
        wide = sum(size > 1 for size in self.scale.shape)
        if self.scale.numel() == 0 or wide > 1 or any(size > 1 for size in self.scale.shape[2:]):
            raise ShapeMismatchError(
                f"'dora_scale' has the shape {tuple(self.scale.shape)}, "
                "but must hold one number per output or per input channel"
            )

    def fits(self, shape: Sequence[int]) -> None:
        if self.over_rows and self.scale.numel() == 1 and shape and shape[0] == 1:
            return  # of the only output, which over_rows cannot tell from the only input
        axis = 1 if self.over_rows else 0
        channels = shape[axis] if len(shape) > axis else 1
        if self.scale.numel() != channels:
            raise ShapeMismatchError(
                f"DoRA has {self.scale.numel()} magnitudes, but the weight {'×'.join(map(str, shape))} "
                f"has {channels} {'input' if axis else 'output'} channels"
            )

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        """A LoRA with magnitudes on the output axis, by alternation; the rule is about the LoRA's ranks.

        It is stored relative to ``request.weight``, and its change depends on that.
        """
        weight, tuned = _both(request)
        scales = first_scales(weight, tuned)
        rank = ranked_svd(scales[:, None] * tuned - weight, request.rule)[1].numel()

        def factorize(matrix: Tensor) -> tuple[Tensor, Tensor]:
            u, s, vh = leading_svd(matrix, rank)
            root = s.sqrt()
            return u * root, vh * root[:, None]

        up, down, magnitude = fit_directions(weight, tuned, factorize)
        ones = (1,) * (1 if request.shape is None else len(request.shape) - 1)
        return Fitted(LoRA.of(up, down, request.shape), rank, magnitude=cls(magnitude.reshape(-1, *ones)))

    @classmethod
    def prices(cls, request: FitRequest) -> list[Price]:
        """Where some of the change is one of lengths: bounds, by the lengths that suit W alone."""
        if request.weight is None:
            return []
        change = request.change.delta()
        weight = request.weight.to(change).reshape(change.shape)
        lengths = torch.linalg.vector_norm(weight, dim=1).clamp_min(1e-30)
        along = torch.einsum("oc,oc->o", weight, change) / lengths
        if float(along.square().sum()) < _ALONG * request.energy:
            return []
        tuned = weight + change
        rows, columns = request.size
        scales = first_scales(weight, tuned)
        rest = scales[:, None] * tuned - weight
        back = float(scales.abs().clamp_min(1e-6).reciprocal().square().max())
        known = leading_values(rest, request.most or min(rest.shape)).double().square().cumsum(0)
        lost = rest.double().square().sum() - known
        return [
            Price(rank * (rows + columns) + rows, request.energy - back * max(0.0, float(own)), (rank,))
            for rank, own in enumerate(lost.tolist(), 1)
        ]

    @classmethod
    def begin(cls, weight: Tensor, wd_on_out: bool = True) -> DoRA:
        channels = weight.detach().float().movedim(0 if wd_on_out else 1, 0)
        norms = torch.linalg.vector_norm(channels.flatten(1), dim=1)
        kernel = (1,) * (weight.dim() - 2)
        return cls(norms.reshape(*((-1, 1) if wd_on_out else (1, -1)), *kernel))

    def around(self, change: Structure) -> Structure:
        kind = ColumnDecomposed if self.over_rows else RowDecomposed
        return kind(change, self.scale.reshape(-1))

    def row_part(self, start: int, count: int) -> DoRA | None:
        return None if self.over_rows else DoRA(self.scale.narrow(0, start, count).clone())

    def of_row_parts(self, parts: Sequence[tuple[int, DoRA]], total: int) -> DoRA | None:
        if any(part.over_rows for _, part in parts):
            return None
        scales = _one_below_the_other([(start, part.scale.flatten()) for start, part in parts], total)
        return None if scales is None else DoRA(scales.reshape(-1, *self.scale.shape[1:]))

    def to_peft(self) -> MagnitudeVector | None:
        return None if self.over_rows else MagnitudeVector(self.scale.reshape(-1))


@dataclass(frozen=True, eq=False)
class MagnitudeVector(Magnitude):
    """PEFT's ``lora_magnitude_vector`` and ai-toolkit's ``magnitude``: the output axis in any shape."""

    algo: ClassVar[str] = "dora_vector"
    title: ClassVar[str] = "DoRA"
    reference: ClassVar[str] = _REFERENCE
    keys: ClassVar[KeySpec] = KeySpec(required=("lora_magnitude_vector",))

    magnitudes: Tensor = tensor("lora_magnitude_vector")

    @property
    def over_rows(self) -> bool:
        return False

    def check(self) -> None:
        if self.magnitudes.numel() != max(self.magnitudes.shape, default=0):
            raise ShapeMismatchError(
                f"the magnitude vector has the shape {tuple(self.magnitudes.shape)}, "
                "but must hold one number per output"
            )

    def fits(self, shape: Sequence[int]) -> None:
        outputs = shape[0] if shape else 1
        if self.magnitudes.numel() != outputs:
            raise ShapeMismatchError(
                f"DoRA has {self.magnitudes.numel()} magnitudes, but the weight has {outputs} outputs"
            )

    @classmethod
    def begin(cls, weight: Tensor, wd_on_out: bool = True) -> MagnitudeVector:
        if not wd_on_out:
            raise TypeError("PEFT's magnitudes are those of outputs")
        return cls(DoRA.begin(weight).scale.reshape(-1))

    def around(self, change: Structure) -> Structure:
        return RowDecomposed(change, self.magnitudes.reshape(-1))

    def row_part(self, start: int, count: int) -> MagnitudeVector:
        return MagnitudeVector(self.magnitudes.flatten().narrow(0, start, count).clone())

    def of_row_parts(
        self, parts: Sequence[tuple[int, MagnitudeVector]], total: int
    ) -> MagnitudeVector | None:
        vectors = [(start, part.magnitudes.flatten()) for start, part in parts]
        joined = _one_below_the_other(vectors, total)
        return None if joined is None else MagnitudeVector(joined)

    def to_peft(self) -> MagnitudeVector:
        return self if self.magnitudes.dim() == 1 else MagnitudeVector(self.magnitudes.reshape(-1))


def _both(request: FitRequest) -> tuple[Tensor, Tensor]:
    """(W, W + the change) as matrices, in the dtype of the change."""
    assert request.weight is not None  # whoever asks for DoRA gives it
    change = request.change.delta()
    weight = request.weight.to(change).reshape(change.shape)
    return weight, weight + change


def _one_below_the_other(parts: Sequence[tuple[int, Tensor]], total: int) -> Tensor | None:
    """The magnitudes of all rows; None where a row has none, or two."""
    ordered = sorted(parts, key=lambda part: part[0])
    position = 0
    for start, values in ordered:
        if start != position:
            return None
        position += values.numel()
    dtype = common_dtype([values for _, values in ordered])
    return torch.cat([values.to(dtype) for _, values in ordered]) if position == total else None
