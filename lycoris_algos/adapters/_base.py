"""What every trained thing of a layer has in common, so that an algorithm's file holds only its own maths.

A *component* is a frozen dataclass whose fields are the tensors and numbers of a file. Two kinds exist: a
*core* (LoRA, LoHa, LoKr …, at most one per layer) and a *part* (``diff``, ``w_norm`` …, added to any core).
Both answer the same questions:

- ``ready(device, dtype)``: the same component in its plainest form, factors moved, cast and contracted as
  far as that stays smaller than the weight. Everything below works on this form, so Tucker kernels, stored
  dtypes and devices are dealt with in one place per algorithm.
- ``delta(weight)``: the definition of the algorithm, pure and differentiable.
- ``add_rows_(rows, start, multiplier)``: the same, fused: adds multiplier·ΔW to some rows of the weight
  without forming ΔW. A law test holds the two equal for every registered class.

Fields are declared with ``tensor`` and ``number``, which name the key suffix they are stored under; loading,
saving and the flat form that the ComfyUI bridge passes around are derived from that.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError, ShapeMismatchError
from ..ops.dtypes import compute_dtype
from . import _registry
from ._keys import KeySpec

if TYPE_CHECKING:
    from typing_extensions import Self

_KEY, _NUMBER = "key", "number"


def tensor(key: str, *, optional: bool = False) -> Any:
    """A dataclass field holding the tensor stored as ``key``; None when ``optional`` and absent."""
    default = None if optional else dataclasses.MISSING
    return dataclasses.field(default=default, metadata={_KEY: key, _NUMBER: False})


def number(key: str) -> Any:
    """A dataclass field holding the number stored as the one-element tensor ``key``; None when absent."""
    return dataclasses.field(default=None, metadata={_KEY: key, _NUMBER: True})


class Component(ABC):
    """A trained thing of one layer. Subclass ``Core`` or ``Part``, never this."""

    #: Name in files, reports and the registry: lower case, stable for ever.
    algo: ClassVar[str]
    #: Name for people.
    title: ClassVar[str]
    #: Where the maths comes from: a paper, or the program that defined the format.
    reference: ClassVar[str]
    #: The key suffixes it is stored under.
    keys: ClassVar[KeySpec]
    #: Whether ΔW depends on W.
    needs_weight: ClassVar[bool] = False

    # ---- files ----------------------------------------------------------------------------------

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Builds it from {suffix: tensor} and checks that the factors fit each other.

        Raises ShapeMismatchError or BadValueError; the caller adds file and layer.
        """
        values: dict[str, Tensor | float | None] = {}
        for field in _fields(cls):
            key = field.metadata[_KEY]
            stored = tensors.get(key)
            if stored is not None and field.metadata[_NUMBER]:
                values[field.name] = _as_number(key, stored)
            else:
                values[field.name] = stored
        component = cls(**values)
        component.check()
        return component

    def to_tensors(self) -> dict[str, Tensor]:
        """{suffix: tensor}, the inverse of ``from_tensors``; numbers become float32 scalars."""
        stored: dict[str, Tensor] = {}
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                stored[field.metadata[_KEY]] = value
            elif value is not None:
                stored[field.metadata[_KEY]] = torch.tensor(value, dtype=torch.float32)
        return stored

    def to_values(self) -> tuple[Tensor | float | None, ...]:
        """The field values in order: a flat form that survives being moved tensor by tensor."""
        return tuple(getattr(self, field.name) for field in _fields(type(self)))

    @classmethod
    def from_values(cls, values: Iterator[Any]) -> Self:
        """The inverse of ``to_values``; takes as many items from ``values`` as there are fields."""
        return cls(*(next(values) for _ in _fields(cls)))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(suffix, tensor) of every tensor field."""
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.metadata[_KEY], value

    # ---- shapes ---------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Raises ShapeMismatchError or BadValueError if the factors do not fit each other."""

    @property
    @abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """(o, ∏…): the shape of ΔW as a matrix of rows."""

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` can take this ΔW."""
        rows, columns = self.matrix_shape
        wanted = (shape[0] if shape else 1, math.prod(shape[1:]))
        if (rows, columns) != wanted:
            raise ShapeMismatchError(
                f"{self.title} makes a change of {rows}×{columns}, but the weight is "
                f"{'×'.join(map(str, shape)) or 'a single number'}"
            )

    # ---- maths ----------------------------------------------------------------------------------

    @abstractmethod
    def ready(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Its plainest form on ``device`` in ``dtype`` (float32 or float64), never larger than needed.

        Idempotent and cheap when nothing is to be done; differentiable.
        """

    @abstractmethod
    def ready_delta(self, weight: Tensor | None) -> Tensor:
        """ΔW as a matrix (o, ∏…) in the form's own dtype. Called on a ``ready`` form only."""

    @abstractmethod
    def add_rows_(self, rows: Tensor, start: int, multiplier: float) -> None:
        """rows += multiplier·ΔW[start : start + n], in place. Called on a ``ready`` form only.

        ``rows`` (n, ∏…) is a view of n rows of the weight with any strides, on the form's device in
        the form's dtype.
        """

    def delta(self, weight: Tensor | Sequence[int]) -> Tensor:
        """ΔW for ``weight``, in its shape and on its device, in float32 (float64 for a float64 weight).

        Cores that do not depend on W also answer from a shape alone. Pure and differentiable with
        respect to the factors (and W, where it depends on it). Raises ShapeMismatchError.
        """
        if isinstance(weight, Tensor):
            shape, device, dtype = weight.shape, weight.device, compute_dtype(weight.dtype)
        else:
            if self.needs_weight:
                raise TypeError(f"{self.title} changes a weight by its values: give the weight")
            shape, device, dtype = torch.Size(weight), *self._home()
            weight = torch.empty(0)
        self.fits(shape)
        base = weight.to(dtype) if self.needs_weight else None
        return self.ready(device, dtype).ready_delta(base).to(dtype).reshape(shape)

    def _home(self) -> tuple[torch.device, torch.dtype]:
        """Device of the factors, and the dtype to compute in when no weight says so."""
        found = [value for _, value in self.tensors()]
        return found[0].device, compute_dtype(*(value.dtype for value in found))


class Core(Component):
    """The one algorithm of a layer. Defining a subclass registers it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _registry.register_core(cls)

    @property
    @abstractmethod
    def rank(self) -> int | None:
        """Rank as alpha is divided by it; None for an algorithm or a form without one."""

    def prepare(self, base_weight: Tensor) -> Core:
        """What can be computed once from the base weight, before any hot loop; itself by default."""
        return self


class Part(Component):
    """Something that is added to a layer's weight or bias besides a core. Subclasses register themselves."""

    #: Which parameter of the layer it changes: "weight" or "bias".
    target: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "target"):  # an intermediate class, such as DenseDelta
            return
        _registry.register_part(cls)


def scale(alpha: float | None, rank: int | None) -> float:
    """alpha / rank; 1 when the file has no alpha, or when the form has no rank to divide by."""
    return 1.0 if alpha is None or rank is None else alpha / rank


def require_matrix(name: str, value: Tensor) -> None:
    """Raises ShapeMismatchError unless ``value`` has two or more dimensions and holds something."""
    if value.dim() < 2 or 0 in value.shape:
        raise ShapeMismatchError(
            f"'{name}' has the shape {tuple(value.shape)}, but must be a non-empty matrix or kernel"
        )


def require_equal(what: str, sizes: Mapping[str, int]) -> None:
    """Raises ShapeMismatchError, naming all of ``sizes``, unless they are equal."""
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} in '{name}'" for name, size in sizes.items())
        raise ShapeMismatchError(f"the {what} differs between its factors: {found}")


def require_floating(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises BadValueError if a factor holds whole numbers or complex ones instead of real ones."""
    for name, value in tensors:
        if not value.dtype.is_floating_point:
            raise BadValueError(f"'{name}' is stored as {value.dtype}, which is no real number type")


def _as_number(key: str, stored: Tensor) -> float:
    if stored.numel() != 1:
        raise ShapeMismatchError(f"'{key}' must be one number, but has the shape {tuple(stored.shape)}")
    value = float(stored.to(torch.float64).item())
    if not math.isfinite(value):
        raise BadValueError(f"'{key}' is {value}")
    return value


def _fields(cls: type[Component]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)  # type: ignore[arg-type]
