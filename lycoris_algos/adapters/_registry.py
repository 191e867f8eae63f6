"""The registry of everything that a layer may store: class by name, and detection of the class from tensors.

Classes put themselves here when they are defined (``__init_subclass__``). A second class of the same name, or
one that forgot its class data, is an error at import, not a surprise at run time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import AmbiguousAdapterError, UnknownAdapterError
from ..text import listed

if TYPE_CHECKING:
    from ._base import Algorithm, Component, Extra
    from ._stored import Stored

_STORED: dict[str, type[Stored]] = {}
_TRAINED: dict[str, type[Component]] = {}
_CLASS_DATA = ("algo", "title", "reference", "keys")
# Suffixes of so many algorithms that they are no sign of any.
_SHARED = frozenset({"alpha", "scale"})


def register(cls: type[Stored], *more: str) -> None:
    """Adds a class; TypeError if its class data (and ``more``) is incomplete or its name taken.

    Algorithms may share keys with each other, since a layer has one of them. Everything else is taken out
    of a layer by its keys alone, so a key of it may belong to nothing else.
    """
    missing = [name for name in (*_CLASS_DATA, *more) if not hasattr(cls, name)]
    if missing:
        raise TypeError(f"{cls.__qualname__} lacks class data: {', '.join(missing)}")
    if cls.algo in _STORED:
        other = _STORED[cls.algo].__qualname__
        raise TypeError(f"{cls.__qualname__}: '{cls.algo}' is taken by {other}")
    for known in _STORED.values():
        shared = cls.keys.names & known.keys.names
        if shared and not (cls.role == known.role == "algorithm"):
            raise TypeError(f"{cls.__qualname__} and {known.__qualname__} share {sorted(shared)}")
    _STORED[cls.algo] = cls
    known_suffixes.cache_clear()
    suffixes_beside.cache_clear()


def register_trained(cls: type[Component]) -> None:
    """Adds a class under the names that trainers use for it, if it names any; TypeError if one is taken."""
    for name in cls.__dict__.get("trained_as", ()):
        if name in _TRAINED:
            raise TypeError(f"{cls.__qualname__}: '{name}' is trained as {_TRAINED[name].__qualname__}")
        _TRAINED[name] = cls


def trained() -> dict[str, type[Component]]:
    """{a trainer's name: class} of everything that training can begin with."""
    return dict(_TRAINED)


def component(algo: str) -> type[Stored]:
    """The class registered as ``algo``; KeyError if there is none."""
    return _STORED[algo]


def _of(*roles: str) -> tuple[Any, ...]:
    return tuple(cls for cls in _STORED.values() if cls.role in roles)


def algorithms() -> tuple[type[Algorithm], ...]:
    """Every algorithm, in order of registration."""
    return _of("algorithm")


def extras() -> tuple[type[Extra], ...]:
    """Every extra, in the order in which they are added to a weight."""
    return _of("extra")


def modifiers() -> tuple[type[Stored], ...]:
    """Everything else that a layer may store: DoRA's magnitude, a new shape."""
    return _of("magnitude", "reshape")


@functools.cache
def known_suffixes() -> frozenset[str]:
    """Every key suffix that some algorithm is stored under."""
    return frozenset().union(*(cls.keys.names for cls in _STORED.values()))


@functools.cache
def suffixes_beside() -> frozenset[str]:
    """The key suffixes of everything that is stored beside an algorithm."""
    return frozenset().union(*(cls.keys.names for cls in (*extras(), *modifiers())))


def detect_algorithm(tensors: Mapping[str, Tensor]) -> type[Algorithm]:
    """The one algorithm that ``tensors`` (what is left of a layer once its extras are taken) belong to.

    Raises UnknownAdapterError, naming the nearest algorithm and what is missing, or AmbiguousAdapterError.
    """
    possible = [cls for cls in algorithms() if tensors.keys() <= cls.keys.names]
    accepting = [cls for cls in possible if not _problems(cls, tensors)]
    if len(accepting) == 1:
        return accepting[0]
    names = listed(sorted(tensors))
    if accepting:
        titles = ", ".join(cls.title for cls in accepting)
        raise AmbiguousAdapterError(f"its tensors ({names}) fit several algorithms: {titles}")
    problems = {cls: _problems(cls, tensors) for cls in algorithms()}
    own = {cls: len((cls.keys.names & tensors.keys()) - _SHARED) for cls in problems}
    nearest = max(problems, key=lambda cls: (own[cls], -len(problems[cls])))
    if not own[nearest]:
        raise UnknownAdapterError(f"no known algorithm is stored as {names}")
    raise UnknownAdapterError(
        f"its tensors are {names}. The nearest algorithm is {nearest.title}, but "
        f"{'; '.join(problems[nearest])}. "
        "The file is damaged or was made by a program that this pack does not know"
    )


def _problems(cls: type[Algorithm], tensors: Mapping[str, Tensor]) -> list[str]:
    return cls.keys.problems(tensors) or cls.shape_problems(tensors)
