"""The parameters of merge methods, declared once each: options, widgets and the command line follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ....errors import BadValueError


@dataclass(frozen=True)
class Parameter:
    """One number: what it is, and what it may be.

    A widget offers ``low`` to ``high``, ends included. Where the maths takes more than that, ``above`` and
    ``below`` are the bounds that a value has to keep, ends excluded.
    """

    name: str
    default: float
    low: float
    high: float
    step: float | None
    above: float | None
    below: float | None
    help: str

    def check(self, value: float) -> None:
        """Raises BadValueError for a value out of bounds."""
        enough = value >= self.low if self.above is None else value > self.above
        if enough and (value <= self.high if self.below is None else value < self.below):
            return
        least = f"at least {self.low:g}" if self.above is None else f"above {self.above:g}"
        most = f"at most {self.high:g}" if self.below is None else f"below {self.below:g}"
        raise BadValueError(f"{self.name} is {value:g}, but must be {least} and {most}")


def _number(
    default: float,
    low: float,
    high: float,
    help: str,
    *,
    step: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    told = {"low": low, "high": high, "step": step, "above": above, "below": below, "help": help}
    return field(default=default, metadata={"default": default, **told})


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A value for each parameter. Raises BadValueError for one out of bounds."""

    density: float = _number(0.5, 0.01, 1.0, "the share of elements that is kept", step=0.01, above=0.0)
    epsilon: float = _number(
        0.2, 0.0, 0.99, "how much more often large elements are kept than small ones", step=0.01, below=1.0
    )
    gamma: float = _number(
        0.01, 0.0, 0.99, "the share of largest elements that is dropped", step=0.005, below=1.0
    )
    seed: int = _number(
        0, 0, 2**53, "which elements are dropped, the same everywhere", above=-math.inf, below=math.inf
    )

    def __post_init__(self) -> None:
        for name, parameter in PARAMETERS.items():
            parameter.check(getattr(self, name))


#: By name, in the order of their declaration.
PARAMETERS = {item.name: Parameter(item.name, **item.metadata) for item in fields(Parameters)}
