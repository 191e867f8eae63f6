"""The one list of what a layer may store: name to class, and the way from a layer's tensors to its classes.

Classes put themselves here when they are defined (``__init_subclass__``). A second class of the same name, or
one that forgot its class data, is an error at import, not a surprise at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import AmbiguousAdapterError, UnknownAdapterError

if TYPE_CHECKING:
    from ._base import Core, Part
    from ._stored import Stored

_STORED: dict[str, type[Stored]] = {}
_CORES: dict[str, type[Core]] = {}
_PARTS: dict[str, type[Part]] = {}
_MODIFIERS: dict[str, type[Stored]] = {}
_CLASS_DATA = ("algo", "title", "reference", "keys")
# Suffixes of so many algorithms that they are no sign of any.
_SHARED = frozenset({"alpha", "scale"})


def _check(cls: type[Stored], *more: str) -> None:
    missing = [name for name in (*_CLASS_DATA, *more) if not hasattr(cls, name)]
    if missing:
        raise TypeError(f"{cls.__qualname__} lacks class data: {', '.join(missing)}")
    if cls.algo in _STORED:
        other = _STORED[cls.algo].__qualname__
        raise TypeError(f"{cls.__qualname__}: '{cls.algo}' is taken by {other}")


def _check_keys(cls: type[Stored], others: Iterable[type[Stored]], *more: str) -> None:
    _check(cls, *more)
    for other in others:
        shared = cls.keys.names & other.keys.names
        if shared:
            raise TypeError(f"{cls.__qualname__} and {other.__qualname__} share {sorted(shared)}")


def register_core(cls: type[Core]) -> None:
    """Adds a core; TypeError if its class data is incomplete, its name taken, or a key a part's."""
    _check_keys(cls, (*_PARTS.values(), *_MODIFIERS.values()))
    _STORED[cls.algo] = _CORES[cls.algo] = cls


def register_part(cls: type[Part]) -> None:
    """Adds a part; TypeError as above, also when anything else claims one of its keys already."""
    _check_keys(cls, _STORED.values(), "target")
    _STORED[cls.algo] = _PARTS[cls.algo] = cls


def register_modifier(cls: type[Stored]) -> None:
    """Adds something that changes what a layer's components do; TypeError as for a part."""
    _check_keys(cls, _STORED.values())
    _STORED[cls.algo] = _MODIFIERS[cls.algo] = cls


def component(algo: str) -> type[Stored]:
    """The class registered as ``algo``; KeyError if there is none."""
    return _STORED[algo]


def cores() -> tuple[type[Core], ...]:
    """Every core, in order of registration."""
    return tuple(_CORES.values())


def parts() -> tuple[type[Part], ...]:
    """Every part, in the order in which they are added to a weight."""
    return tuple(_PARTS.values())


def modifiers() -> tuple[type[Stored], ...]:
    """Everything else that a layer may store: DoRA's magnitude, a new shape."""
    return tuple(_MODIFIERS.values())


def known_suffixes() -> frozenset[str]:
    """Every key suffix that some algorithm is stored under."""
    return frozenset().union(*(cls.keys.names for cls in _STORED.values()))


def detect_core(tensors: Mapping[str, Tensor]) -> type[Core]:
    """The one core that ``tensors`` (what is left of a layer once its parts are taken) belong to.

    Raises UnknownAdapterError, naming the nearest algorithm and what is missing, or AmbiguousAdapterError.
    """
    possible = [cls for cls in _CORES.values() if tensors.keys() <= cls.keys.names]
    accepting = [cls for cls in possible if not _problems(cls, tensors)]
    if len(accepting) == 1:
        return accepting[0]
    names = ", ".join(sorted(tensors))
    if accepting:
        titles = ", ".join(cls.title for cls in accepting)
        raise AmbiguousAdapterError(f"its tensors ({names}) fit several algorithms: {titles}")
    found = {cls: _problems(cls, tensors) for cls in _CORES.values()}
    own = {cls: len((cls.keys.names & tensors.keys()) - _SHARED) for cls in found}
    nearest = max(found, key=lambda cls: (own[cls], -len(found[cls])))
    if not own[nearest]:
        raise UnknownAdapterError(f"no known algorithm is stored as {names}")
    raise UnknownAdapterError(
        f"its tensors are {names}. The nearest algorithm is {nearest.title}, but "
        f"{'; '.join(found[nearest])}. "
        "The file is damaged or was made by a program that this pack does not know"
    )


def _problems(cls: type[Core], tensors: Mapping[str, Tensor]) -> list[str]:
    return cls.keys.problems(tensors) or cls.shape_problems(tensors)
