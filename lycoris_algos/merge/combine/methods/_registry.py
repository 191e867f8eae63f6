"""The registry of merge methods: each function with its name, what it is given, and its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from torch import Tensor

from ....errors import BadValueError
from ....text import quoted
from ._parameters import PARAMETERS, Parameter, Parameters

_F = TypeVar("_F", bound=Callable[..., Any])


class Kind(Enum):
    """What a method is given of a layer, by the names of its function's arguments, and what it returns.

    A *linear* method answers the numbers cᵢ of D = Σ cᵢ·Dᵢ, one for each adapter that has the layer, so that
    D is never formed where the Dᵢ have factors. There, ``weights`` are the wᵢ of all adapters and ``present``
    the indices of those that have the layer, in order. In the two other kinds, ``weights`` are the wᵢ of the
    adapters that have the layer.
    """

    #: Linear, by the multipliers alone.
    WEIGHTS = ("weights", "present")
    #: Linear, by the inner products too: ``gram`` (n, n) float64 holds ⟨Dᵢ, Dⱼ⟩ of the adapters present.
    GRAM = ("weights", "present", "gram")
    #: Answers D. It looks at every element: ``deltas`` are the Dᵢ, dense, in float32.
    ELEMENTWISE = ("deltas", "weights")
    #: Answers factors (up, down) of D. It works on singular vectors: ``factors`` are (up, down) of each Dᵢ.
    SINGULAR_VECTORS = ("factors", "weights")


@dataclass(frozen=True)
class MergeMethod:
    """One way to make one change out of several.

    ``summary`` is a sentence or two for a user, ``at_least`` the smallest number of adapters that it works
    on. ``like_stack`` says that it is what a stack does when it is applied, and so can replay that in order.
    What ``function`` takes by keyword alone, it gets: parameters by their names, as the user set them, and if
    it is not linear ``layer``, the name of the layer, on which random numbers depend.
    """

    name: str
    kind: Kind
    summary: str
    function: Callable[..., Any]
    at_least: int = 1
    reference: str = ""
    like_stack: bool = False

    @cached_property
    def keywords(self) -> tuple[str, ...]:
        """What the function takes by keyword alone."""
        arguments = inspect.signature(self.function).parameters.values()
        return tuple(argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What a user may tell it."""
        return tuple(PARAMETERS[name] for name in self.keywords if name != _LAYER)

    @property
    def linear(self) -> bool:
        """Whether D = Σ cᵢ·Dᵢ."""
        return self.kind in (Kind.WEIGHTS, Kind.GRAM)

    @property
    def by_factors(self) -> bool:
        """Whether factors of the Dᵢ are enough, so that these need not be formed."""
        return self.kind is not Kind.ELEMENTWISE

    def __call__(self, *given: Any, told: Parameters, layer: str = "") -> Any:
        """The function's result for one layer, from what its kind is given and what the user told."""
        own = {name: layer if name == _LAYER else getattr(told, name) for name in self.keywords}
        return self.function(*given, **own)

    def coefficients(
        self,
        weights: Sequence[float],
        present: Sequence[int],
        gram: Callable[[], Tensor],
        told: Parameters,
    ) -> list[float]:
        """The cᵢ of a linear method. ``gram`` is called where the method needs the inner products."""
        inner = (gram(),) if self.kind is Kind.GRAM else ()
        factors: list[float] = self(weights, present, *inner, told=told)
        return factors


_LAYER = "layer"
_METHODS: dict[str, MergeMethod] = {}
#: By name, in the order in which a user is offered them.
METHODS: Mapping[str, MergeMethod] = MappingProxyType(_METHODS)


def method(
    name: str,
    kind: Kind,
    summary: str,
    *,
    at_least: int = 1,
    reference: str = "",
    like_stack: bool = False,
) -> Callable[[_F], _F]:
    """Registers the decorated function as a method; see ``MergeMethod``.

    TypeError if the name is taken, or if the function's arguments are not those of its kind and parameters.
    """

    def register(function: _F) -> _F:
        if name in _METHODS:
            raise TypeError(f"{function.__qualname__}: {quoted(name)} is taken")
        entry = MergeMethod(name, kind, summary, function, at_least, reference, like_stack)
        arguments = tuple(n for n in inspect.signature(function).parameters if n not in entry.keywords)
        if arguments != kind.value:
            raise TypeError(f"{function.__qualname__} takes {arguments}, but {kind} gives {kind.value}")
        unknown = set(entry.keywords) - PARAMETERS.keys() - (set() if entry.linear else {_LAYER})
        if unknown:
            raise TypeError(f"{function.__qualname__} wants {sorted(unknown)}, which are no parameters")
        _METHODS[name] = entry
        return function

    return register


def find(name: str) -> MergeMethod:
    """The method called ``name``; BadValueError if there is none."""
    if name not in _METHODS:
        raise BadValueError(f"there is no method {quoted(name)}: choose one of {', '.join(_METHODS)}")
    return _METHODS[name]


def explained(parameter: Parameter) -> str:
    """A parameter's help behind the methods that use it: "dare and della: which elements are dropped"."""
    users = [found.name for found in _METHODS.values() if parameter in found.parameters]
    *most, last = users or ["no method"]
    return f"{', '.join(most)} and {last}: {parameter.help}" if most else f"{last}: {parameter.help}"
