"""One layer's adapter: what a file holds for it, and what that does to a weight.

    V = W + algorithm(W) + extras(W)     with DoRA: V·d/‖V‖ instead of V     W(m) = W + m·(V − W)

Everything is computed in float32 (float64 for a float64 weight), whatever the weight and the factors are
stored as, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from .. import structures
from ..errors import (
    AmbiguousAdapterError,
    BadValueError,
    ShapeMismatchError,
    SiblingRowsError,
    UnknownAdapterError,
)
from ..ops.dtypes import compute_dtype
from ..ops.rounding import STOCHASTIC, Extremes, beyond, count_broken, overflow_threshold
from ..structures import Enlarged, RowSlice, Structure, Sum, enlarged
from ..text import Brief, listed
from . import _registry
from ._base import FLOAT, Algorithm, Base, Component, Extra, Magnitude, Shape
from ._stored import Stored
from .reshape import Reshape


@dataclass(frozen=True, eq=False)
class LayerAdapter(Brief):
    """The trained tensors of one layer. A layer of extras only, or of a bias only, is legal."""

    algorithm: Algorithm | None = None
    #: Added to the weight after the algorithm, in the order of registration.
    extras: tuple[Extra, ...] = ()
    #: Added to the layer's bias.
    bias_extras: tuple[Extra, ...] = ()
    magnitude: Magnitude | None = None
    reshape: Reshape | None = None

    # ---- files ----------------------------------------------------------------------------------

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LayerAdapter:
        """Builds it from the {suffix: tensor} of one layer; every tensor must find its use.

        Raises UnknownAdapterError (naming the nearest algorithm and what is missing),
        AmbiguousAdapterError, ShapeMismatchError or BadValueError.
        """
        rest = dict(tensors)
        stored: list[Stored] = []
        if rest.keys() & _registry.suffixes_beside():
            stored += _taken(rest)
        algorithm = _registry.detect_algorithm(rest).from_tensors(rest) if rest else None
        extras = [item for item in stored if isinstance(item, Extra)]
        own_bias = () if algorithm is None else algorithm.bias_extras()
        layer = cls(
            algorithm,
            tuple(item for item in extras if item.target == "weight"),
            (*(item for item in extras if item.target == "bias"), *own_bias),
            _only([item for item in stored if isinstance(item, Magnitude)]),
            _only([item for item in stored if isinstance(item, Reshape)]),
        )
        if not layer.weight_components and (layer.magnitude or layer.reshape or not layer.bias_extras):
            names = listed(sorted(tensors)) or "nothing"
            raise UnknownAdapterError(f"it stores {names}, which changes no weight by itself")
        if layer.reshape is not None:
            if layer.matrix_shape is None:
                titles = " + ".join(layer.titles)
                raise ShapeMismatchError(f"it enlarges its weight, whose size its {titles} does not tell")
            layer.fits(layer.reshape.shape)  # or a small file could ask for any amount of memory
        return layer

    def to_tensors(self) -> dict[str, Tensor]:
        """{suffix: tensor} of the whole layer, the inverse of ``from_tensors``."""
        stored: dict[str, Tensor] = {}
        for item in self.components():
            stored.update(item.to_tensors())
        return stored

    def components(self) -> Iterator[Stored]:
        """Everything that the layer stores."""
        yield from self.weight_components
        yield from (item for item in (self.magnitude, self.reshape) if item is not None)
        yield from self.bias_extras

    @property
    def weight_components(self) -> tuple[Component, ...]:
        """What adds to the weight, in order of application."""
        return self.extras if self.algorithm is None else (self.algorithm, *self.extras)

    @property
    def bias(self) -> LayerAdapter | None:
        """The adapter of the layer's bias, for a bias to be treated like any other parameter."""
        return LayerAdapter(extras=self.bias_extras) if self.bias_extras else None

    @property
    def needs_bias(self) -> bool:
        """Whether the layer cannot be used on a module without a bias."""
        return any(not extra.optional for extra in self.bias_extras)

    @property
    def plain(self) -> Algorithm | None:
        """The algorithm of a layer that is nothing else (a bias aside)."""
        alone = not self.extras and self.magnitude is None and self.reshape is None
        return self.algorithm if alone else None

    @property
    def titles(self) -> tuple[str, ...]:
        """Names for people of what this layer is made of, without repetition."""
        return tuple(dict.fromkeys(item.title for item in self.components()))

    @property
    def size_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for item in self.components() for _, tensor in item.tensors())

    def require_finite(self) -> None:
        """Raises BadValueError, naming the tensor, if one holds NaN or infinity (those with numbers)."""
        for item in self.components():
            for name, value in item.tensors():
                if value.dtype.is_floating_point and not value.is_meta:
                    _require_finite(name, value)

    # ---- what is known without computing --------------------------------------------------------

    @property
    def needs_weight(self) -> bool:
        """Whether ΔW depends on the weight that it is added to."""
        return self.magnitude is not None or any(item.needs_weight for item in self.weight_components)

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """The shape of the weight it was trained on, where its tensors tell it; see ``Component``."""
        if self.reshape is not None:
            return None  # they tell the shape afterwards
        told = (component.weight_shape for component in self.weight_components)
        return next((shape for shape in told if shape is not None), None)

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
        """Rank of two factors that hold ΔW exactly (see ``Algorithm``); None for anything but one alone."""
        alone = self.algorithm is not None and not self.extras and self.magnitude is None
        return self.algorithm.exact_rank if alone and self.algorithm is not None else None

    def new_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a weight of ``shape`` has afterwards; another one only with ``reshape``."""
        return shape if self.reshape is None else self.reshape.new_shape(shape)

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` can take everything this layer stores."""
        after = self.new_shape(tuple(shape))
        for component in self.weight_components:
            component.fits(after)
        if self.magnitude is not None:
            self.magnitude.fits(after)

    # ---- other stored forms of the same ---------------------------------------------------------

    @property
    def linear(self) -> bool:
        """Whether a multiplier can be stored in its factors (``multiplied``)."""
        items = (*self.weight_components, *self.bias_extras)
        return self.magnitude is None and all(item.linear for item in items)

    def multiplied(self, factor: float) -> LayerAdapter | None:
        """The same with ``factor``·ΔW on weight and bias, in the same form.

        None where no stored factor does that: with DoRA, and for algorithms that are not linear in one.
        """
        if factor == 1.0:
            return self
        if not self.linear:
            return None
        algorithm = None if self.algorithm is None else self.algorithm.multiplied(factor)
        extras = [extra.multiplied(factor) for extra in (*self.extras, *self.bias_extras)]
        changed = tuple(extra for extra in extras if isinstance(extra, Extra))
        count = len(self.extras)
        assert algorithm is None or isinstance(algorithm, Algorithm)
        return replace(self, algorithm=algorithm, extras=changed[:count], bias_extras=changed[count:])

    def cast(self, dtype: torch.dtype, device: torch.device | None = None) -> LayerAdapter:
        """The same with every real tensor stored in ``dtype`` (on ``device``)."""
        algorithm, magnitude = self.algorithm, self.magnitude
        return replace(
            self,
            algorithm=None if algorithm is None else algorithm.cast(dtype, device),
            extras=tuple(extra.cast(dtype, device) for extra in self.extras),
            bias_extras=tuple(extra.cast(dtype, device) for extra in self.bias_extras),
            magnitude=None if magnitude is None else magnitude.cast(dtype, device),
        )

    def filling(self, dtype: torch.dtype) -> LayerAdapter:
        """The same change by factors that use the range of ``dtype``, if that is an fp8; else itself."""
        stored = {value.dtype for item in self.components() for _, value in item.tensors()}
        if self.algorithm is None or dtype not in STOCHASTIC or stored == {dtype}:
            return self
        return replace(self, algorithm=self.algorithm.filling())

    def stored_as(self, dtype: torch.dtype, device: torch.device | None = None) -> LayerAdapter:
        """``cast``, for a file. Raises BadValueError, naming the tensor, for what ``dtype`` cannot hold."""
        for item in self.components():
            for name, value in item.tensors():
                if not value.dtype.is_floating_point:
                    continue
                extremes = Extremes()
                extremes.see(value.to(compute_dtype(value.dtype)))
                if not extremes.largest < overflow_threshold(dtype):
                    problem = beyond(extremes.largest, dtype)
                    raise BadValueError(f"'{name}' {problem}: choose a wider number type")
        return self.cast(dtype, device)

    # ---- the change -----------------------------------------------------------------------------

    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Structure:
        """What it does to weights of ``shape``, with all solved that can be solved before any hot loop.

        Factors are used as they are stored; what is solved is kept in ``dtype``. ``base`` fetches the
        weight that was trained on, for an algorithm that stores itself relative to it. Raises
        ShapeMismatchError, and NeedsBaseError where such an algorithm has no ``base``.
        """
        self.fits(shape)
        after = self.new_shape(tuple(shape))
        terms = tuple(component.structure(after, dtype, base) for component in self.weight_components)
        change = terms[0] if len(terms) == 1 else Sum(terms)
        if self.magnitude is not None:
            change = self.magnitude.around(change)
        return change if self.reshape is None else Enlarged(change, after)

    def rows(self, structure: Structure, start: int, count: int, total: int) -> RowSlice:
        """``count`` rows from ``start`` on of ``structure``, this adapter's for a layer of ``total`` outputs.

        Raises SiblingRowsError where the change of those rows depends on others, ShapeMismatchError if
        there are no such rows.
        """
        if start < 0 or count < 1 or start + count > total:
            raise ShapeMismatchError(
                f"rows {start} to {start + count} lie outside a layer of {total} outputs"
            )
        if self.reshape is not None:
            raise SiblingRowsError(f"it enlarges a layer {_IN_PIECES}")
        if self.magnitude is not None and self.magnitude.over_rows:
            raise SiblingRowsError(
                f"DoRA on the input axis takes norms over all rows of a layer, {_IN_PIECES}"
            )
        unit, title = structure.row_unit, " + ".join(self.titles)
        if unit == 0:
            raise SiblingRowsError(f"{title} mixes all rows of a layer, {_IN_PIECES}")
        if start % unit or count % unit:
            raise SiblingRowsError(
                f"{title} mixes rows of a layer in blocks of {unit}, {_IN_PIECES} that cut through them"
            )
        return RowSlice(structure, start, count, total)

    def low_rank(self, weight: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Tensor] | None:
        """ΔW exactly as (up (o, r), down (r, i·∏k)), where that is smaller than ΔW: r·(o + i·∏k) < o·i·∏k.

        None otherwise, and for a ΔW that depends on W while no ``weight`` is given. A shape does where
        nothing depends on W, and need not be given where the tensors tell it. On the device of ``weight``
        (else of the factors), in float32 or float64.
        """
        if self.exact_rank is None:
            return None
        if not isinstance(weight, Tensor):
            shape = self.matrix_shape if weight is None else self.new_shape(tuple(weight))
            if self.needs_weight or shape is None:
                return None
            device, dtype = self._home()
            made = replace(self, reshape=None).structure(shape, dtype)
            return made.cast(device, dtype).paying_factors()
        weight = enlarged(weight, self.new_shape(tuple(weight.shape)))
        structure, matrix = self._made_for(weight)
        return structure.paying_factors(matrix)

    def delta(self, weight: Tensor | Sequence[int]) -> Tensor:
        """ΔW(W) = V − W in W's shape (or ``new_shape``), float32 (float64 for float64).

        Pure and differentiable. A shape may be given instead of a weight where nothing depends on W.
        Raises ShapeMismatchError.
        """
        if isinstance(weight, Tensor):
            weight = enlarged(weight, self.new_shape(tuple(weight.shape)))
            if not self.weight_components:
                return weight.new_zeros(weight.shape, dtype=compute_dtype(weight.dtype))
            structure, matrix = self._made_for(weight)
            return structure.delta(matrix).to(matrix.dtype).reshape(weight.shape)
        if self.needs_weight:
            title = "DoRA" if self.magnitude is not None else " + ".join(self.titles)
            raise TypeError(f"{title} changes a weight by its values: give the weight")
        shape = self.new_shape(tuple(weight))
        if not self.weight_components:
            return torch.zeros(shape)
        device, dtype = self._home()
        return self.structure(tuple(weight), dtype).cast(device, dtype).delta().to(dtype).reshape(shape)

    def _made_for(self, weight: Tensor) -> tuple[Structure, Tensor]:
        """(the structure for ``weight``, which has its shape afterwards, cast for it; W as a matrix)."""
        dtype = compute_dtype(weight.dtype)
        made = replace(self, reshape=None).structure(weight.shape, dtype, lambda: weight)
        matrix = weight.to(dtype).reshape(weight.shape[0] if weight.dim() else 1, -1)
        return made.cast(weight.device, dtype), matrix

    def _home(self) -> tuple[torch.device, torch.dtype]:
        """Device of the factors, and the dtype to compute in when no weight says so."""
        values = [value for item in self.weight_components for _, value in item.tensors()]
        return values[0].device, compute_dtype(*(value.dtype for value in values))

    def add_to_(self, weight: Tensor, multiplier: float) -> Tensor:
        """weight += multiplier·ΔW(weight), in place and fused; returns ``weight``.

        Any floating dtype, device and strides; computed in float32 (float64 for float64) and rounded
        once. Multiplier 0 leaves every bit as it is. Raises ShapeMismatchError before touching it. Only
        ``reshape`` makes a new tensor.
        """
        return apply_(weight, ((self, multiplier),))

    def __repr__(self) -> str:
        return f"LayerAdapter({' + '.join(self.titles)})"


def apply_(
    weight: Tensor,
    entries: Sequence[tuple[LayerAdapter, float]],
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    inverse: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """weight += m₁·ΔW₁, then m₂·ΔW₂ …, in place, in this order, rounding once; returns ``weight``.

    ``entries`` are (adapter, multiplier); those with multiplier 0 are skipped. ``transform`` and ``inverse``
    are as in ``structures.apply_``. Raises ShapeMismatchError before anything is changed.
    """
    with torch.no_grad():
        dtype, shape = compute_dtype(weight.dtype), tuple(weight.shape)
        made: list[tuple[Structure, float]] = []
        for layer, multiplier in entries:
            if multiplier == 0.0:
                continue
            if transform is not None and inverse is None and layer.needs_weight:
                raise TypeError(f"{' + '.join(layer.titles)} needs the weight in the order it was trained in")
            made.append((layer.structure(shape, dtype, lambda: weight), multiplier))
            shape = layer.new_shape(shape)
        return structures.apply_(weight, made, transform=transform, inverse=inverse)


_IN_PIECES = "which this model stores in pieces"
_S = TypeVar("_S", bound=Stored)


def _taken(rest: dict[str, Tensor]) -> Iterator[Stored]:
    """Everything but the algorithm, built from ``rest`` and taken out of it."""
    for kind in (*_registry.extras(), *_registry.modifiers()):
        own = {name: rest.pop(name) for name in kind.keys.names & rest.keys()}
        if not own:
            continue
        problems = kind.keys.problems(own)
        if problems:
            raise UnknownAdapterError(f"its {kind.title} is incomplete: {'; '.join(problems)}")
        yield kind.from_tensors(own)


def _only(matching: Sequence[_S]) -> _S | None:
    if len(matching) > 1:
        titles = " and ".join(item.title for item in matching)
        raise AmbiguousAdapterError(f"it stores two things of one kind: {titles}")
    return matching[0] if matching else None


def _require_finite(name: str, value: Tensor) -> None:
    broken = count_broken(value)
    if broken:
        raise BadValueError(
            f"'{name}' holds {broken} of {value.numel()} numbers that are NaN or infinite: "
            "the training that made this file diverged, or the file is damaged"
        )
