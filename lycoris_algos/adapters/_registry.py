"""The one list of algorithms: name to class, and the way from a layer's tensors to its class.

Classes put themselves here when they are defined (``Component.__init_subclass__``). A second class of the
same name, or one that forgot its class data, is an error at import, not a surprise at run time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ..errors import AmbiguousAdapterError, UnknownAdapterError

if TYPE_CHECKING:
    from ._base import Component, Core, Part

_COMPONENTS: dict[str, type[Component]] = {}
_CORES: dict[str, type[Core]] = {}
_PARTS: dict[str, type[Part]] = {}
_CLASS_DATA = ("algo", "title", "reference", "keys")


def _check(cls: type[Component]) -> None:
    missing = [name for name in _CLASS_DATA if not hasattr(cls, name)]
    if missing:
        raise TypeError(f"{cls.__qualname__} lacks class data: {', '.join(missing)}")
    if cls.algo in _COMPONENTS:
        other = _COMPONENTS[cls.algo].__qualname__
        raise TypeError(f"{cls.__qualname__}: '{cls.algo}' is taken by {other}")


def register_core(cls: type[Core]) -> None:
    """Adds a core; TypeError if its class data is incomplete or its name taken."""
    _check(cls)
    _COMPONENTS[cls.algo] = _CORES[cls.algo] = cls


def register_part(cls: type[Part]) -> None:
    """Adds a part; TypeError as above, also when another part claims one of its keys."""
    _check(cls)
    for other in _PARTS.values():
        shared = cls.keys.names & other.keys.names
        if shared:
            raise TypeError(f"{cls.__qualname__} and {other.__qualname__} share {sorted(shared)}")
    _COMPONENTS[cls.algo] = _PARTS[cls.algo] = cls


def component(algo: str) -> type[Component]:
    """The class registered as ``algo``; KeyError if there is none."""
    return _COMPONENTS[algo]


def cores() -> tuple[type[Core], ...]:
    """Every core, in order of registration."""
    return tuple(_CORES.values())


def parts() -> tuple[type[Part], ...]:
    """Every part, in the order in which they are added to a weight."""
    return tuple(_PARTS.values())


def known_suffixes() -> frozenset[str]:
    """Every key suffix that some algorithm is stored under."""
    return frozenset().union(*(cls.keys.names for cls in _COMPONENTS.values()))


def detect_core(suffixes: Collection[str]) -> type[Core]:
    """The one core that ``suffixes`` (what is left of a layer once its parts are taken) belong to.

    Raises UnknownAdapterError, naming the nearest algorithm and what is missing, or AmbiguousAdapterError.
    """
    accepting = [cls for cls in _CORES.values() if not cls.keys.problems(suffixes)]
    if len(accepting) == 1:
        return accepting[0]
    if accepting:
        names = ", ".join(cls.title for cls in accepting)
        raise AmbiguousAdapterError(
            f"its tensors ({', '.join(sorted(suffixes))}) fit several algorithms: {names}"
        )
    nearest = max(_CORES.values(), key=lambda cls: len(cls.keys.names & set(suffixes) - {"alpha"}))
    shared = nearest.keys.names & set(suffixes) - {"alpha"}
    found = ", ".join(sorted(suffixes))
    if not shared:
        raise UnknownAdapterError(f"no known algorithm is stored as {found}")
    problems = "; ".join(nearest.keys.problems(suffixes))
    raise UnknownAdapterError(
        f"its tensors are {found}. The nearest algorithm is {nearest.title}, but {problems}. "
        "The file is damaged or was made by a program that this pack does not know"
    )
