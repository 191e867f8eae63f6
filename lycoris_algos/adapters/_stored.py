"""What everything stored for a layer has in common: fields that are tensors and numbers under known keys.

Fields are declared with ``tensor``, ``indices``, ``number`` and ``whole_numbers``, which name the key suffix
that they are stored under; loading, saving, checking and the flat form that the ComfyUI bridge passes around
are derived from that, so an algorithm's file holds only its own maths.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import BadValueError, ShapeMismatchError
from ..text import Brief, quoted
from ._keys import KeySpec

if TYPE_CHECKING:
    from typing_extensions import Self

_KEY, _KIND, _TRAINED = "key", "kind", "trained"
# Far from float32's ends: a product with a strength does not pass them, and what is stored again is the same.
_SMALLEST, _LARGEST = 1e-30, 1e30


def tensor(key: str, *, optional: bool = False, trained: bool = True) -> Any:
    """A dataclass field holding the real tensor stored as ``key``; None when ``optional`` and absent.

    Training changes it, unless ``trained`` says that it stays as it is.
    """
    default = None if optional else dataclasses.MISSING
    return dataclasses.field(default=default, metadata={_KEY: key, _KIND: "real", _TRAINED: trained})


def indices(key: str) -> Any:
    """A dataclass field holding the tensor of whole numbers stored as ``key``."""
    return dataclasses.field(metadata={_KEY: key, _KIND: "whole"})


def number(key: str) -> Any:
    """A dataclass field holding the number stored as the one-element tensor ``key``; None when absent."""
    return dataclasses.field(default=None, metadata={_KEY: key, _KIND: "number"})


def whole_numbers(key: str) -> Any:
    """A dataclass field holding the tuple of ints stored as the short vector ``key``."""
    return dataclasses.field(metadata={_KEY: key, _KIND: "ints"})


class Stored(Brief, ABC):
    """Tensors and numbers of one layer under known key suffixes. A frozen dataclass."""

    #: Name in files, reports and the registry: lower case, stable for ever.
    algo: ClassVar[str]
    #: Name for people.
    title: ClassVar[str]
    #: Where the maths comes from: a paper, or the program that defined the format.
    reference: ClassVar[str]
    #: The key suffixes it is stored under.
    keys: ClassVar[KeySpec]
    #: What it is to its layer: "algorithm", "extra", "magnitude" or "reshape".
    role: ClassVar[str]

    def __post_init__(self) -> None:
        """Whatever made a number (a file, a configuration, a correction): the maths must be able to use it.

        Raises BadValueError.
        """
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, float) and value != 0.0 and not _SMALLEST < abs(value) < _LARGEST:
                raise BadValueError(
                    f"{quoted(field.metadata.get(_KEY, field.name))} is {value:g}, which no training uses: "
                    "the file is damaged, or its metadata is"
                )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Builds it from {suffix: tensor} and checks that everything fits together.

        Raises ShapeMismatchError or BadValueError; the caller adds file and layer.
        """
        values = {}
        for field in _fields(cls):
            key = field.metadata.get(_KEY)
            if key is None:  # what follows from something else that the layer stores
                continue
            stored = tensors.get(key)
            values[field.name] = None if stored is None else _READERS[field.metadata[_KIND]](key, stored)
        built = cls(**values)
        built.check()
        return built

    def to_tensors(self) -> dict[str, Tensor]:
        """{suffix: tensor}, the inverse of ``from_tensors``; numbers become float32 scalars."""
        stored: dict[str, Tensor] = {}
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if _KEY not in field.metadata:
                continue
            if isinstance(value, Tensor):
                stored[field.metadata[_KEY]] = value
            elif isinstance(value, tuple):
                stored[field.metadata[_KEY]] = torch.tensor(value, dtype=torch.int64)
            elif value is not None:
                stored[field.metadata[_KEY]] = torch.tensor(value, dtype=torch.float32)
        return stored

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(suffix, tensor) of every tensor field that is there."""
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and _KEY in field.metadata:
                yield field.metadata[_KEY], value

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same with those of ``tensors``, by suffix, that it stores. Shapes are equal: none is checked.

        A training step does this for every layer.
        """
        fresh = object.__new__(type(self))
        for name, key, kind in _slots(type(self)):
            value = getattr(self, name)
            if key in tensors:
                value = tensors[key] if kind in ("real", "whole") else _READERS[kind](key, tensors[key])
            object.__setattr__(fresh, name, value)
        return fresh

    def trained(self) -> frozenset[str]:
        """The suffixes of the tensors that training changes."""
        fields = (field for field in _fields(type(self)) if getattr(self, field.name) is not None)
        return frozenset(field.metadata[_KEY] for field in fields if field.metadata.get(_TRAINED))

    def cast(self, dtype: torch.dtype, device: torch.device | None = None) -> Self:
        """The same with every real tensor stored in ``dtype``; whole numbers and alpha stay as they are."""
        changed: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device=device, dtype=dtype)
            for field in _fields(type(self))
            if field.metadata.get(_KIND) == "real" and getattr(self, field.name) is not None
        }
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def row_part(self, start: int, count: int) -> Self | None:
        """What it does to ``count`` rows of its parameter, stored for them alone; None if it cannot be."""
        return None

    def of_row_parts(self, parts: Sequence[tuple[int, Self]], total: int) -> Self | None:
        """The sum of ``parts``, of which this is one, each with its first row of ``total``; None as above."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Raises ShapeMismatchError or BadValueError if the tensors do not fit each other."""

    def __repr__(self) -> str:
        shapes = (f"{name} {'×'.join(map(str, value.shape)) or '1'}" for name, value in self.tensors())
        return f"{type(self).__name__}({', '.join(shapes)})"


def require_matrix(name: str, value: Tensor) -> None:
    """Raises ShapeMismatchError unless ``value`` has two or more dimensions and holds something."""
    if value.dim() < 2 or 0 in value.shape:
        raise ShapeMismatchError(
            f"'{name}' has the shape {tuple(value.shape)}, but must be a non-empty matrix or kernel"
        )


def row_numel(value: Tensor) -> int:
    """How many numbers each row of ``value`` (which has rows) holds. It is asked at every patch."""
    return value.numel() // value.shape[0]


def require_equal(what: str, sizes: Mapping[str, int]) -> None:
    """Raises ShapeMismatchError, naming all of ``sizes``, unless they are equal."""
    if len(set(sizes.values())) > 1:
        stored = ", ".join(f"{size} in '{name}'" for name, size in sizes.items())
        raise ShapeMismatchError(f"the {what} differs between its factors: {stored}")


def _real(key: str, stored: Tensor) -> Tensor:
    if not stored.dtype.is_floating_point:
        raise BadValueError(f"'{key}' is stored as {stored.dtype}, which is no real number type")
    return stored


def _whole(key: str, stored: Tensor) -> Tensor:
    if stored.dtype.is_floating_point or stored.dtype.is_complex:
        raise BadValueError(f"'{key}' is stored as {stored.dtype}, but must hold whole numbers")
    return stored


def _number(key: str, stored: Tensor) -> float:
    if stored.numel() != 1:
        raise ShapeMismatchError(f"'{key}' must be one number, but has the shape {tuple(stored.shape)}")
    if stored.dtype.is_complex:
        raise BadValueError(f"'{key}' is stored as {stored.dtype}, which is no real number type")
    value = float(stored.to(torch.float64).item())
    if not math.isfinite(value):
        raise BadValueError(f"'{key}' is {value}")
    return value


def _ints(key: str, stored: Tensor) -> tuple[int, ...]:
    if stored.dim() > 1 or stored.numel() > 8:
        raise ShapeMismatchError(f"'{key}' must be a short list, but has the shape {tuple(stored.shape)}")
    return tuple(int(_number(key, value)) for value in stored.reshape(-1))


_READERS = {"real": _real, "whole": _whole, "number": _number, "ints": _ints}


_SLOTS: dict[type[Stored], tuple[tuple[str, str, str], ...]] = {}


def _slots(cls: type[Stored]) -> tuple[tuple[str, str, str], ...]:
    """(name, key, kind) of every field, "" where it is not stored. A table that torch.compile can follow."""
    known = _SLOTS.get(cls)
    if known is None:
        own = ((f.name, f.metadata.get(_KEY, ""), f.metadata.get(_KIND, "")) for f in _fields(cls))
        known = _SLOTS[cls] = tuple(own)
    return known


@functools.cache
def _fields(cls: type[Stored]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)  # type: ignore[arg-type]
