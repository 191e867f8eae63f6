"""One layer's adapter: at most one core, any number of parts, and how they change a weight.

    V = W + core + parts          W(m) = W + m·(V − W)

``apply_`` is the only place where adapters meet a weight. It decides how the update runs:

- A weight that is already in the compute dtype, and whose strides let it be seen as a matrix of rows, is
  updated in place and whole, with no temporary of its size.
- Any other (bf16, fp16, fp8, channels-last) goes through one fp32 buffer, a block of rows at a time: every
  entry of a stack is added to the block while it is in the cache, and it is rounded once on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BadValueError, UnknownAdapterError
from ..ops.dtypes import compute_dtype
from ..ops.rows import matrix_view, row_blocks, rows_per_block
from . import _registry
from ._base import Component, Core, Part, require_floating


@dataclass(frozen=True, eq=False)
class LayerAdapter:
    """The trained tensors of one layer. A layer of parts only, or of a bias only, is legal."""

    core: Core | None = None
    #: Added to the weight after the core, in the order of registration.
    parts: tuple[Part, ...] = ()
    #: Added to the layer's bias.
    bias_parts: tuple[Part, ...] = ()

    # ---- files ----------------------------------------------------------------------------------

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LayerAdapter:
        """Builds it from the {suffix: tensor} of one layer; every tensor must find its use.

        Raises UnknownAdapterError (naming the nearest algorithm and what is missing),
        AmbiguousAdapterError, ShapeMismatchError or BadValueError.
        """
        rest = dict(tensors)
        require_floating((name, value) for name, value in rest.items() if value.dim() > 0)
        found: list[Part] = []
        for part in _registry.parts():
            own = {name: rest.pop(name) for name in part.keys.names & rest.keys()}
            if own:
                found.append(part.from_tensors(own))
        core = _registry.detect_core(rest).from_tensors(rest) if rest else None
        if core is None and not found:
            raise UnknownAdapterError("it has no tensors")
        weight_parts = tuple(part for part in found if part.target == "weight")
        return cls(core, weight_parts, tuple(part for part in found if part.target == "bias"))

    def to_tensors(self) -> dict[str, Tensor]:
        """{suffix: tensor}, the inverse of ``from_tensors``."""
        stored: dict[str, Tensor] = {}
        for component in self.components():
            stored.update(component.to_tensors())
        return stored

    def components(self) -> Iterator[Component]:
        """Core, parts and bias parts, in this order."""
        yield from self.weight_components
        yield from self.bias_parts

    @property
    def weight_components(self) -> tuple[Component, ...]:
        """What changes the weight, in order of application."""
        return (*((self.core,) if self.core is not None else ()), *self.parts)

    @property
    def bias(self) -> LayerAdapter | None:
        """The adapter of the layer's bias, for a bias to be treated like any other parameter."""
        return LayerAdapter(parts=self.bias_parts) if self.bias_parts else None

    @property
    def titles(self) -> tuple[str, ...]:
        """Names for people of what this layer is made of, without repetition."""
        return tuple(dict.fromkeys(component.title for component in self.components()))

    @property
    def size_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(t.nbytes for component in self.components() for _, t in component.tensors())

    def require_finite(self) -> None:
        """Raises BadValueError, naming the tensor, if one holds NaN or infinity."""
        for component in self.components():
            for name, value in component.tensors():
                _require_finite(name, value)

    # ---- the flat form --------------------------------------------------------------------------

    def to_values(self) -> tuple[Any, ...]:
        """What changes the weight, as a flat tuple of tensors, numbers, strings and None."""
        flat: list[Any] = [len(self.weight_components)]
        for component in self.weight_components:
            flat += (component.algo, *component.to_values())
        return tuple(flat)

    @classmethod
    def from_values(cls, values: Iterator[Any]) -> LayerAdapter:
        """The inverse of ``to_values``; consumes exactly its own items."""
        core: Core | None = None
        parts: list[Part] = []
        for _ in range(next(values)):
            component = _registry.component(next(values)).from_values(values)
            if isinstance(component, Core):
                core = component
            elif isinstance(component, Part):
                parts.append(component)
        return cls(core, tuple(parts))

    # ---- maths ----------------------------------------------------------------------------------

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` can take every weight component."""
        for component in self.weight_components:
            component.fits(shape)

    def prepare(self, base_weight: Tensor) -> LayerAdapter:
        """With everything done that can be done once from the base weight (see ``Core.prepare``)."""
        core = None if self.core is None else self.core.prepare(base_weight)
        return LayerAdapter(core, self.parts, self.bias_parts)

    def delta(self, weight: Tensor | Sequence[int]) -> Tensor:
        """ΔW(W) = V − W in W's shape, float32 (float64 for float64). Pure and differentiable.

        A shape may be given instead of a weight where no component depends on W. Raises
        ShapeMismatchError.
        """
        components = self.weight_components
        if not components:
            shape = weight.shape if isinstance(weight, Tensor) else tuple(weight)
            return torch.zeros(shape)
        total = components[0].delta(weight)
        for component in components[1:]:
            total = total + component.delta(weight)
        return total

    def add_to_(self, weight: Tensor, multiplier: float) -> Tensor:
        """weight += multiplier·ΔW(weight), in place and fused; returns ``weight``.

        Any floating dtype, device and strides; computed in float32 (float64 for float64) and rounded
        once. Multiplier 0 leaves every bit as it is. Raises ShapeMismatchError before touching it.
        """
        return apply_(weight, ((self, multiplier),))


@torch.no_grad()
def apply_(
    weight: Tensor,
    entries: Sequence[tuple[LayerAdapter, float]],
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """weight += m₁·ΔW₁, then m₂·ΔW₂ …, in place, in this order, rounding once; returns ``weight``.

    ``entries`` are (adapter, multiplier); those with multiplier 0 are skipped. With ``transform`` (a host
    that stores the weight reordered) each ΔW is formed, transformed and then added. Raises
    ShapeMismatchError before anything is changed.
    """
    active = [(layer, multiplier) for layer, multiplier in entries if multiplier != 0.0]
    for layer, _ in active:
        layer.fits(weight.shape)
    if not active or weight.numel() == 0:
        return weight
    dtype = compute_dtype(weight.dtype)
    if transform is not None:
        return _apply_transformed(weight, active, transform, dtype)
    steps = [
        (component.ready(weight.device, dtype), multiplier)
        for layer, multiplier in active
        for component in layer.weight_components
    ]
    matrix = matrix_view(weight) if weight.dtype == dtype else None
    if matrix is not None:
        for component, multiplier in steps:
            component.add_rows_(matrix, 0, multiplier)
    else:
        _apply_by_blocks(weight if weight.dim() else weight.view(1), steps, dtype)
    return weight


def _apply_transformed(
    weight: Tensor,
    entries: Sequence[tuple[LayerAdapter, float]],
    transform: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> Tensor:
    wide = weight.to(dtype)
    for layer, multiplier in entries:
        wide += transform(layer.delta(wide) * multiplier)
    return weight if wide is weight else weight.copy_(wide)


def _apply_by_blocks(weight: Tensor, steps: Sequence[tuple[Component, float]], dtype: torch.dtype) -> None:
    columns = weight[0].numel()
    step = min(weight.shape[0], rows_per_block(columns, dtype, weight.device))
    buffer = torch.empty((step, *weight.shape[1:]), dtype=dtype, device=weight.device)
    for start, stop in row_blocks(weight.shape[0], step):
        block = buffer[: stop - start]
        block.copy_(weight[start:stop])
        rows = block.view(stop - start, columns)
        for component, multiplier in steps:
            component.add_rows_(rows, start, multiplier)
        weight[start:stop].copy_(block)


def _require_finite(name: str, value: Tensor) -> None:
    # A sum is one fast pass, and is finite unless an element is not, or (rarely) the sum itself overflows:
    # only then is every element looked at.
    wide = value if value.dtype in (torch.float32, torch.float64) else value.float()
    if bool(torch.isfinite(wide.sum())):
        return
    bad = wide.numel() - int(torch.isfinite(wide).sum())
    if bad:
        raise BadValueError(
            f"'{name}' holds {bad} of {wide.numel()} numbers that are NaN or infinite: "
            "the training that made this file diverged, or the file is damaged"
        )
