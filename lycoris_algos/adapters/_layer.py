"""One layer's adapter: what a file holds for it, and what that does to a weight.

    V = W + core(W) + parts(W)          with DoRA: V·d/‖V‖ instead of V          W(m) = W + m·(V − W)

Everything is computed in float32 (float64 for a float64 weight), whatever the weight and the factors are
stored as, and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import AmbiguousAdapterError, BadValueError, SiblingRowsError, UnknownAdapterError
from ..ops.dtypes import compute_dtype
from . import _registry
from ._base import Component, Core, Part
from ._modifiers import Magnitude
from ._ready import ReadyLayer, update_
from ._stored import Stored
from .reshape import Reshape
from .window import Window


@dataclass(frozen=True, eq=False)
class LayerAdapter:
    """The trained tensors of one layer. A layer of parts only, or of a bias only, is legal."""

    core: Core | None = None
    #: Added to the weight after the core, in the order of registration.
    parts: tuple[Part, ...] = ()
    #: Added to the layer's bias.
    bias_parts: tuple[Part, ...] = ()
    magnitude: Magnitude | None = None
    reshape: Reshape | None = None
    #: The rows that are meant, where a model stores the layer in pieces; nothing that a file says.
    window: Window | None = None

    # ---- files ----------------------------------------------------------------------------------

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LayerAdapter:
        """Builds it from the {suffix: tensor} of one layer; every tensor must find its use.

        Raises UnknownAdapterError (naming the nearest algorithm and what is missing),
        AmbiguousAdapterError, ShapeMismatchError or BadValueError.
        """
        rest = dict(tensors)
        found: list[Stored] = []
        for kind in (*_registry.parts(), *_registry.modifiers()):
            own = {name: rest.pop(name) for name in kind.keys.names & rest.keys()}
            if not own:
                continue
            problems = kind.keys.problems(own)
            if problems:
                raise UnknownAdapterError(f"its {kind.title} is incomplete: {'; '.join(problems)}")
            found.append(kind.from_tensors(own))
        bias_parts = [item for item in found if isinstance(item, Part) and item.target == "bias"]
        found = [item for item in found if item not in bias_parts]
        if rest:
            core = _registry.detect_core(rest).from_tensors(rest)
            found.append(core)
            bias_parts += core.bias_parts()
        layer = cls._of(found, tuple(bias_parts))
        if not layer.weight_components and (layer.magnitude or layer.reshape or not layer.bias_parts):
            names = ", ".join(sorted(tensors)) or "nothing"
            raise UnknownAdapterError(f"it stores {names}, which changes no weight by itself")
        return layer

    @classmethod
    def _of(cls, found: Sequence[Stored], bias_parts: tuple[Part, ...] = ()) -> LayerAdapter:
        """Sorts what changes one parameter by what it does. AmbiguousAdapterError if one comes twice."""
        return cls(
            core=_only([item for item in found if isinstance(item, Core)]),
            parts=tuple(item for item in found if isinstance(item, Part)),
            bias_parts=bias_parts,
            magnitude=_only([item for item in found if isinstance(item, Magnitude)]),
            reshape=_only([item for item in found if isinstance(item, Reshape)]),
            window=_only([item for item in found if isinstance(item, Window)]),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """{suffix: tensor} of the whole layer, the inverse of ``from_tensors``."""
        stored: dict[str, Tensor] = {}
        for item in self.components():
            stored.update(item.to_tensors())
        return stored

    def components(self) -> Iterator[Stored]:
        """Everything that the layer stores."""
        yield from self._weight_items()
        yield from self.bias_parts

    @property
    def weight_components(self) -> tuple[Component, ...]:
        """What adds to the weight, in order of application."""
        return (*((self.core,) if self.core is not None else ()), *self.parts)

    def _weight_items(self) -> Iterator[Stored]:
        yield from self.weight_components
        yield from (item for item in (self.magnitude, self.reshape) if item is not None)

    @property
    def bias(self) -> LayerAdapter | None:
        """The adapter of the layer's bias, for a bias to be treated like any other parameter."""
        return LayerAdapter(parts=self.bias_parts, window=self.window) if self.bias_parts else None

    @property
    def needs_bias(self) -> bool:
        """Whether the layer cannot be used on a module without a bias."""
        return any(not part.optional for part in self.bias_parts)

    @property
    def titles(self) -> tuple[str, ...]:
        """Names for people of what this layer is made of, without repetition."""
        return tuple(dict.fromkeys(item.title for item in self.components()))

    @property
    def size_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for item in self.components() for _, tensor in item.tensors())

    def require_finite(self) -> None:
        """Raises BadValueError, naming the tensor, if one holds NaN or infinity."""
        for item in self.components():
            for name, value in item.tensors():
                if value.dtype.is_floating_point:
                    _require_finite(name, value)

    # ---- the flat form --------------------------------------------------------------------------

    def to_values(self) -> tuple[Any, ...]:
        """What changes the weight, as a flat tuple of tensors, numbers, strings and None."""
        items = (*self._weight_items(), *((self.window,) if self.window is not None else ()))
        flat: list[Any] = [len(items)]
        for item in items:
            flat += (item.algo, *item.to_values())
        return tuple(flat)

    @classmethod
    def from_values(cls, values: Iterator[Any]) -> LayerAdapter:
        """The inverse of ``to_values``; consumes exactly its own items."""
        count = next(values)
        return cls._of([_registry.component(next(values)).from_values(values) for _ in range(count)])

    # ---- pieces ---------------------------------------------------------------------------------

    def rows(self, start: int, count: int, total: int) -> LayerAdapter:
        """The adapter of ``count`` rows from ``start`` on, of a layer that has ``total`` outputs.

        Its ΔW of those rows of a weight is those rows of the ΔW of the weight. Raises SiblingRowsError where
        that takes rows that are not there, ShapeMismatchError if there are no such rows.
        """
        window = Window(start, count, total)
        window.check()
        for component in (*self.weight_components, *self.bias_parts):
            unit = component.row_unit
            if unit == 0:
                raise SiblingRowsError(f"{component.title} mixes all rows of a layer, {_IN_PIECES}")
            if start % unit or (start + count) % unit:
                raise SiblingRowsError(
                    f"{component.title} mixes rows of a layer in blocks of {unit}, {_IN_PIECES} "
                    "that cut through them"
                )
        if self.magnitude is not None and self.magnitude.over_rows:
            raise SiblingRowsError(
                f"DoRA on the input axis takes norms over all rows of a layer, {_IN_PIECES}"
            )
        if self.reshape is not None:
            raise SiblingRowsError(f"it enlarges a layer {_IN_PIECES}")
        return replace(self, window=window)

    # ---- maths ----------------------------------------------------------------------------------

    @property
    def needs_weight(self) -> bool:
        """Whether ΔW depends on the weight that it is added to."""
        return self.magnitude is not None or any(item.needs_weight for item in self.weight_components)

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """The shape of the weight it was trained on, where its tensors tell it; see ``Component``."""
        if self.reshape is not None:
            return None  # they tell the shape afterwards
        found = (component.weight_shape for component in self.weight_components)
        return next((shape for shape in found if shape is not None), None)

    @property
    def matrix_shape(self) -> tuple[int, int] | None:
        """(o, i·∏k) of the weight it changes, where its tensors tell it."""
        for component in self.weight_components:
            rows, columns = component.matrix_shape
            if rows is not None and columns is not None:
                return rows, columns
        return None

    @property
    def exact_rank(self) -> int | None:
        """Rank of two factors that hold ΔW exactly (see ``Core``); None for anything but a plain core."""
        plain = self.core is not None and not self.parts and self.magnitude is None
        return self.core.exact_rank if plain and self.core is not None else None

    def low_rank(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """ΔW exactly as (up, down) where that is smaller than ΔW; see ``Core.low_rank``."""
        if self.core is None or self.exact_rank is None:
            return None
        if weight is not None:
            weight = enlarged(weight, self.new_shape(tuple(weight.shape)))
        return self.core.low_rank(weight)

    @property
    def linear(self) -> bool:
        """Whether a multiplier can be stored in its factors (``multiplied``)."""
        items = (*self.weight_components, *self.bias_parts)
        return self.magnitude is None and all(item.linear for item in items)

    def multiplied(self, factor: float) -> LayerAdapter | None:
        """The same with ``factor``·ΔW on weight and bias, in the same form.

        None where no stored factor does that: with DoRA, and for algorithms that are not linear in one.
        """
        if factor == 1.0:
            return self
        if self.magnitude is not None:
            return None
        found = [item.multiplied(factor) for item in (*self.weight_components, *self.bias_parts)]
        parts = tuple(item for item in found if isinstance(item, Part))
        core = _only([item for item in found if isinstance(item, Core)])
        if None in found:
            return None
        count = len(self.parts)
        return replace(self, core=core, parts=parts[:count], bias_parts=parts[count:])

    def cast(self, dtype: torch.dtype, device: torch.device | None = None) -> LayerAdapter:
        """The same with every real tensor stored in ``dtype`` (on ``device``)."""
        magnitude = self.magnitude
        return replace(
            self,
            core=None if self.core is None else self.core.cast(dtype, device),
            parts=tuple(part.cast(dtype, device) for part in self.parts),
            bias_parts=tuple(part.cast(dtype, device) for part in self.bias_parts),
            magnitude=None if magnitude is None else magnitude.cast(dtype, device),
        )

    def new_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a weight of ``shape`` has afterwards; another one only with ``reshape``."""
        return shape if self.reshape is None else self.reshape.new_shape(shape)

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` can take everything this layer stores."""
        after = self.new_shape(tuple(shape)) if self.window is None else self.window.whole(shape)
        for component in self.weight_components:
            component.fits(after)
        if self.magnitude is not None:
            self.magnitude.fits(after)

    def prepare(self, base_weight: Callable[[], Tensor]) -> LayerAdapter:
        """With everything computed that can be computed once (see ``Core.prepare``)."""
        return self if self.core is None else replace(self, core=self.core.prepare(base_weight))

    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> ReadyLayer:
        """The form that changes weights of ``shape`` on ``device``, computing in ``dtype``."""
        whole = shape if self.window is None else self.window.whole(shape)
        return ReadyLayer(
            tuple(component.ready(whole, device, dtype) for component in self.weight_components),
            None if self.magnitude is None else self.magnitude.ready(device, dtype),
            0 if self.window is None else self.window.start,
        )

    def delta(self, weight: Tensor | Sequence[int]) -> Tensor:
        """ΔW(W) = V − W in W's shape (or ``new_shape``), float32 (float64 for float64).

        Pure and differentiable. A shape may be given instead of a weight where nothing depends on W.
        Raises ShapeMismatchError.
        """
        if self.window is not None:
            whole = self.window.whole(tuple(weight) if not isinstance(weight, Tensor) else weight.shape)
            given = self.window.widened(weight) if isinstance(weight, Tensor) else whole
            return self.window.narrowed(replace(self, window=None).delta(given))
        if isinstance(weight, Tensor):
            weight = enlarged(weight, self.new_shape(tuple(weight.shape)))
        elif self.magnitude is not None:
            raise TypeError("DoRA changes a weight by its values: give the weight")
        else:
            weight = self.new_shape(tuple(weight))
        components = self.weight_components
        if not components:
            home = weight if isinstance(weight, Tensor) else torch.empty(0)
            shape = weight.shape if isinstance(weight, Tensor) else tuple(weight)
            return home.new_zeros(shape, dtype=compute_dtype(home.dtype))
        total = components[0].delta(weight)
        for component in components[1:]:
            total = total + component.delta(weight)
        if self.magnitude is None or not isinstance(weight, Tensor):
            return total
        base = weight.to(total.dtype)
        return self._decomposed(base + total, self.magnitude) - base

    def _decomposed(self, combined: Tensor, magnitude: Magnitude) -> Tensor:
        ready = magnitude.ready(combined.device, combined.dtype)
        self.fits(combined.shape)
        matrix = combined.reshape(combined.shape[0], -1)
        if ready.over_rows:
            return (matrix * ready.column_factors(matrix.square().sum(0))).reshape(combined.shape)
        return (matrix * ready.row_factors(matrix, slice(None))).reshape(combined.shape)

    def add_to_(self, weight: Tensor, multiplier: float) -> Tensor:
        """weight += multiplier·ΔW(weight), in place and fused; returns ``weight``.

        Any floating dtype, device and strides; computed in float32 (float64 for float64) and rounded
        once. Multiplier 0 leaves every bit as it is. Raises ShapeMismatchError before touching it. Only
        ``reshape`` makes a new tensor.
        """
        return apply_(weight, ((self, multiplier),))


def apply_(
    weight: Tensor,
    entries: Sequence[tuple[LayerAdapter, float]],
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    inverse: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """weight += m₁·ΔW₁, then m₂·ΔW₂ …, in place, in this order, rounding once; returns ``weight``.

    ``entries`` are (adapter, multiplier); those with multiplier 0 are skipped. With ``transform`` (a host
    that stores the weight reordered) each ΔW is formed, transformed and then added; an adapter that depends
    on the weight then also needs ``inverse``, which gives back the order that it was trained in (TypeError
    without). An adapter that enlarges its weight makes a new tensor, which is returned instead, and
    ``weight`` stays as it is. Raises ShapeMismatchError before anything is changed.
    """
    if torch.is_grad_enabled():  # ComfyUI has it off, and asking is cheaper than switching it off again
        with torch.no_grad():
            return apply_(weight, entries, transform=transform, inverse=inverse)
    active = [(layer, multiplier) for layer, multiplier in entries if multiplier != 0.0]
    shape = tuple(weight.shape)
    for layer, _ in active:
        layer.fits(shape)
        shape = layer.new_shape(shape)
    if not active or weight.numel() == 0:
        return weight
    weight = enlarged(weight, shape)
    dtype = compute_dtype(weight.dtype)
    if transform is None:
        steps = [
            (layer.ready(weight.shape, weight.device, dtype), multiplier) for layer, multiplier in active
        ]
        update_(weight, steps, dtype)
        return weight
    for layer, _ in active:
        if layer.needs_weight and inverse is None:
            raise TypeError(f"{' + '.join(layer.titles)} needs the weight in the order it was trained in")
    wide = weight.to(dtype)
    for layer, multiplier in active:
        trained = inverse(wide) if inverse is not None else wide
        wide += transform(layer.delta(trained) * multiplier)
    return weight if wide is weight else weight.copy_(wide)


def enlarged(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``weight`` itself if it has ``shape``, else a new tensor with it in the corner of zeros."""
    if tuple(weight.shape) == shape:
        return weight
    larger = weight.new_zeros(shape)
    larger[tuple(slice(size) for size in weight.shape)] = weight
    return larger


_IN_PIECES = "which this model stores in pieces"
_S = TypeVar("_S", bound=Stored)


def _only(matching: Sequence[_S]) -> _S | None:
    if len(matching) > 1:
        titles = " and ".join(item.title for item in matching)
        raise AmbiguousAdapterError(f"it stores two things of one kind: {titles}")
    return matching[0] if matching else None


def _require_finite(name: str, value: Tensor) -> None:
    # A sum is one fast pass, and is finite unless an element is not, or (rarely) the sum itself overflows:
    # only then is every element looked at.
    wide = value.float() if value.element_size() == 1 else value  # float8 has no sums
    if math.isfinite(wide.sum(dtype=compute_dtype(value.dtype))):
        return
    bad = wide.numel() - int(torch.isfinite(wide).sum())
    if bad:
        raise BadValueError(
            f"'{name}' holds {bad} of {wide.numel()} numbers that are NaN or infinite: "
            "the training that made this file diverged, or the file is damaged"
        )
