"""What every structure answers, and the flat form in which one travels through ComfyUI.

A weight is seen as a matrix W of rows (o) and columns (i·∏k). A structure may hold tensors of any dtype on
any device (as a file has them); ``cast`` and ``ready`` answer the one to compute with, on one device and in
one dtype. Whatever computes is called on such a one only.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import compute_dtype, to_compute
from ..ops.lowrank import gram_spectrum, product_inner, product_spectrum
from ..ops.rows import row_blocks, rows_per_block
from ..text import Brief
from .operation import LayerOperation

_KINDS: dict[str, type[Structure]] = {}
_KIND, _TUPLE = "structure:", "tuple:"

#: Two factors (up (o, r), down (r, c)) whose product is a change.
Factors = tuple[Tensor, Tensor]


class Structure(Brief, ABC):
    """A change ΔW of a weight, possibly one that depends on W. A frozen dataclass; a subclass is a kind."""

    #: Name of the kind in the flat form.
    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            if cls.kind in _KINDS:
                raise TypeError(
                    f"{cls.__qualname__}: the kind '{cls.kind}' is taken by {_KINDS[cls.kind].__qualname__}"
                )
            _KINDS[cls.kind] = cls

    # ---- what is known without computing ----------------------------------------------------------

    @property
    @abstractmethod
    def size(self) -> tuple[int | None, int | None]:
        """(o, c) of ΔW as a matrix; None where any size will do."""

    @property
    def needs_weight(self) -> bool:
        """Whether ΔW depends on W."""
        return False

    @property
    def row_unit(self) -> int:
        """Rows of ΔW depend on no rows of W outside their own group of this many; 0: on all of them."""
        return 1

    @property
    def exact_rank(self) -> int | None:
        """How many ranks ``factors`` have at most; None where there are no such factors."""
        return None

    def new_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a weight of ``shape`` has afterwards; another one for ``Enlarged`` only."""
        return shape

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape``, as a matrix, has this structure's size."""
        rows = shape[0] if shape else 1
        columns = math.prod(shape[1:])
        own_rows, own_columns = self.size
        if own_rows not in (None, rows) or own_columns not in (None, columns):
            own = "×".join("any" if size is None else str(size) for size in self.size)
            size = "×".join(map(str, shape)) or "a single number"
            raise ShapeMismatchError(f"a change of {own} was made for another weight, this one is {size}")

    # ---- how it is made ready ---------------------------------------------------------------------

    def cast(self, device: torch.device, dtype: torch.dtype) -> Structure:
        """The same on ``device``, to compute in ``dtype`` (float32 or float64).

        Differentiable, and cheap when nothing is to be done.
        """
        return self._moved("cast", device, dtype)

    def ready(self, device: torch.device, dtype: torch.dtype) -> Structure:
        """``cast``, and with factors multiplied out where that makes the change faster to add to a weight."""
        return self._moved("ready", device, dtype)

    def _moved(self, how: str, device: torch.device, dtype: torch.dtype) -> Structure:
        changed = {}
        for name in _names(type(self)):
            value = getattr(self, name)
            moved = _moved(value, how, device, dtype)
            if moved is not value:
                changed[name] = moved
        return dataclasses.replace(self, **changed) if changed else self  # type: ignore[type-var]

    # ---- the change of a weight -------------------------------------------------------------------

    @abstractmethod
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW as a matrix (o, c). ``weight`` is W as a matrix, given where ``needs_weight`` says so."""

    @abstractmethod
    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        """rows += multiplier·ΔW(base)[start : start + n], in place, without a temporary of the weight's size.

        ``rows`` (n, c) is a view of n rows of the weight with any strides. ``base`` holds the same rows of
        W for a ΔW that depends on it; it may be ``rows`` itself, so it is read before anything is written
        over it. ``start`` and n are multiples of ``row_unit`` (n may also end at the last row).
        """

    def rows(self, start: int, stop: int, weight: Tensor | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of ΔW, a new tensor. ``weight`` is all of W, where it is needed."""
        if self.row_unit == 0:
            return self.delta(weight)[start:stop]
        like = self._like()
        columns = self._columns(weight)
        dtype = compute_dtype(like.dtype) if weight is None else weight.dtype
        block = like.new_zeros((stop - start, columns), dtype=dtype)
        self.add_rows_(block, start, 1.0, block if weight is None else weight[start:stop])
        return block

    # ---- its algebra ------------------------------------------------------------------------------

    def factors(self, weight: Tensor | None = None) -> Factors | None:
        """ΔW exactly as (up (o, r), down (r, c)) with r at most ``exact_rank``; None where that is None."""
        return None

    def paying_factors(self, weight: Tensor | None = None) -> Factors | None:
        """``factors`` where they are smaller than ΔW: r·(o + c) < o·c."""
        rows, columns = self._rows(weight), self._columns(weight)
        return self.factors(weight) if pays(self.exact_rank, rows, columns) else None

    def norm(self, weight: Tensor | None = None) -> float:
        """The Frobenius norm of ΔW, without forming it where its algebra allows. Summed in float64."""
        return math.sqrt(max(0.0, self.inner_product(self, weight)))

    def inner_product(self, other: Structure, weight: Tensor | None = None) -> float:
        """⟨ΔW, ΔW'⟩ with the change of ``other``: the sum of the products of all elements, in float64."""
        own, others = self.paying_factors(weight), other.paying_factors(weight)
        if own is not None and others is not None:
            return product_inner(own, others)
        total = 0.0
        for start, stop in self.in_blocks(other, weight=weight):
            first = self.rows(start, stop, weight).double()
            second = first if other is self else other.rows(start, stop, weight).double()
            total += float((first * second).sum())
        return total

    def reach(self) -> float | None:
        """No element of ΔW is larger than this; None where only W tells, or nothing that is cheap."""
        return None

    def spectrum(self, weight: Tensor | None = None) -> Tensor:
        """The singular values of ΔW in float64, the largest first; those beyond its rank may be left out."""
        factors = self.paying_factors(weight)
        return gram_spectrum(self.delta(weight)) if factors is None else product_spectrum(*factors)

    def in_blocks(
        self, *others: Structure, weight: Tensor | None = None, most: int = 0
    ) -> Iterator[tuple[int, int]]:
        """(start, stop) of blocks of rows in which this and ``others`` can be made (``rows``).

        Of as many rows as fit the cache, or of about ``most``.
        """
        unit = common_unit(structure.row_unit for structure in (self, *others))
        count, columns = self._rows(weight), self._columns(weight)
        if not unit:
            yield 0, count
            return
        step = most or rows_per_block(columns, torch.float64, self._like().device)
        yield from row_blocks(count, max(unit, step // unit * unit), unit)

    def _rows(self, weight: Tensor | None) -> int:
        return _known(self.size[0], weight, 0)

    def _columns(self, weight: Tensor | None) -> int:
        return _known(self.size[1], weight, 1)

    def _like(self) -> Tensor:
        """A real tensor of its own, for device and dtype."""
        return next(value for value in self.tensors() if value.is_floating_point())

    def tensors(self) -> Iterator[Tensor]:
        """Its tensors, those of inner structures too."""
        for name in _names(type(self)):
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Structure):
                    yield from item.tensors()
                elif isinstance(item, Tensor):
                    yield item

    # ---- activations ------------------------------------------------------------------------------

    def forward(self, x: Tensor, operation: LayerOperation) -> Tensor:
        """What ΔW adds to the output of a layer for the input ``x``, without its bias: ``operation`` with ΔW.

        ``operation`` is what the layer does with its weight (operation.py). ΔW is formed only where nothing
        cheaper is known. Differentiable.
        """
        return operation.through(x, self.delta(operation.matrix if self.needs_weight else None))

    @property
    def work(self) -> int | None:
        """How many multiplications ``forward`` takes for each position, beside the layer's own output.

        None where it forms ΔW, or asks the layer about other inputs than ``x``.
        """
        return None

    # ---- the flat form ----------------------------------------------------------------------------

    def to_values(self) -> tuple[Any, ...]:
        """A flat tuple of tensors, numbers and strings, which may be moved item by item."""
        flat: list[Any] = []
        _flatten(self, flat)
        return tuple(flat)

    @staticmethod
    def from_values(values: Iterator[Any]) -> Structure:
        """The inverse of ``to_values``; takes exactly its own items from ``values``."""
        structure = _unflatten(values)
        assert isinstance(structure, Structure)
        return structure

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({'×'.join('any' if size is None else str(size) for size in self.size)})"
        )


def pays(rank: int | None, rows: int, columns: int) -> bool:
    """Whether factors of ``rank`` are smaller than the matrix (rows, columns) that they stand for."""
    return rank is not None and rank * (rows + columns) < rows * columns


def common_unit(units: Iterator[int]) -> int:
    """Rows depend on no rows outside groups of so many if each of them does; 0 if one depends on all."""
    counts = tuple(units)
    return 0 if 0 in counts else math.lcm(*counts)


def _known(own: int | None, weight: Tensor | None, axis: int) -> int:
    if own is not None:
        return own
    if weight is None:
        raise TypeError("a change of any size was asked about without the weight that it changes")
    return weight.shape[axis]


def _moved(value: Any, how: str, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return to_compute(value, device, dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, Structure):
        return value.cast(device, dtype) if how == "cast" else value.ready(device, dtype)
    if isinstance(value, tuple):
        return tuple(_moved(item, how, device, dtype) for item in value)
    return value


def _flatten(value: Any, flat: list[Any]) -> None:
    if isinstance(value, Structure):
        flat.append(_KIND + value.kind)
        for name in _names(type(value)):
            _flatten(getattr(value, name), flat)
    elif isinstance(value, tuple):
        flat.append(f"{_TUPLE}{len(value)}")
        for item in value:
            _flatten(item, flat)
    else:
        flat.append(value)


def _unflatten(values: Iterator[Any]) -> Any:
    value = next(values)
    if not isinstance(value, str):
        return value
    if value.startswith(_KIND):
        cls = _KINDS[value.removeprefix(_KIND)]
        return cls(*(_unflatten(values) for _ in _names(cls)))
    return tuple(_unflatten(values) for _ in range(int(value.removeprefix(_TUPLE))))


_NAMES: dict[type[Structure], tuple[str, ...]] = {}


def _names(cls: type[Structure]) -> tuple[str, ...]:
    """The fields of a kind. A table that torch.compile can follow, which a cached function is not."""
    known = _NAMES.get(cls)
    if known is None:
        own = dataclasses.fields(cls)  # type: ignore[arg-type]
        known = _NAMES[cls] = tuple(field.name for field in own)
    return known
