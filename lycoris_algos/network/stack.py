"""A stack: adapter sets in the order in which they are applied, each with its own strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import BadValueError
from ..models import UNKNOWN, Role
from ..text import Brief, listed, quoted, single_line
from .adapter_set import AdapterSet
from .multipliers import Layer, Multipliers
from .roles import named_roles

# What a number of a file times a strength stays within float32 for.
_LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class StackEntry(Brief):
    """An adapter set and its strengths: one for the layers of the diffusion model, one for text encoders.

    ``multipliers`` are the file's own and those of whole stacks that it went through: all of them count.
    Fields added later have defaults, so that entries that were made before them stay valid. Raises
    BadValueError for a strength that is not finite, or so large that no weight could hold the change.
    """

    adapters: AdapterSet
    strength_model: float = 1.0
    strength_clip: float = 1.0
    multipliers: tuple[Multipliers, ...] = ()

    def __post_init__(self) -> None:
        for value in (self.strength_model, self.strength_clip):
            if not -_LARGEST <= value <= _LARGEST:
                raise BadValueError(
                    f"the strength of {quoted(self.adapters.name)} is {value:g}, but must lie between "
                    f"{-_LARGEST:g} and {_LARGEST:g}"
                )

    def multiplier(self, layer: str, is_text: bool, role_of: Callable[[str], Role | None]) -> float:
        """The multiplier of ``layer``, of a text encoder or not: the strength times what rules give it.

        ``role_of`` says what a layer is in the model, or None where that is not known; it is asked only where
        there are rules.
        """
        value = self.strength_clip if is_text else self.strength_model
        if self.multipliers:
            asked = Layer(layer, self.role(layer, role_of))
            for multipliers in self.multipliers:
                value *= multipliers.of(asked)
        return value

    def role(self, layer: str, role_of: Callable[[str], Role | None]) -> Role:
        """What ``layer`` is: in the model, where ``role_of`` knows that, else by its name in the file."""
        return role_of(layer) or self._named.get(layer, UNKNOWN)

    @cached_property
    def _named(self) -> dict[str, Role]:
        return named_roles(self.adapters, self.adapters.metadata)

    def with_multipliers(self, multipliers: Multipliers) -> StackEntry:
        """The same with ``multipliers`` on top of those that it has."""
        return replace(self, multipliers=(*self.multipliers, multipliers)) if multipliers.rules else self

    def scaled(self, strength_model: float, strength_clip: float) -> StackEntry:
        """The same with the strengths of a whole stack folded in."""
        return replace(
            self,
            strength_model=self.strength_model * strength_model,
            strength_clip=self.strength_clip * strength_clip,
        )

    def __str__(self) -> str:
        name = single_line(self.adapters.name)
        rules = "".join(f", multipliers {single_line(str(own), 400)}" for own in self.multipliers)
        return f"{name} at {self.strength_model:g} (clip {self.strength_clip:g}){rules}"


Stack = tuple[StackEntry, ...]


def check_multipliers(stack: Sequence[StackEntry], roles: Sequence[Callable[[str], Role | None]]) -> None:
    """Raises BadValueError for a rule that fits no layer of the files that it is for.

    ``roles`` says of each entry what its layers are, as for ``StackEntry.multiplier``.
    """
    files: dict[Multipliers, list[int]] = {}
    for number, entry in enumerate(stack):
        for multipliers in entry.multipliers:
            files.setdefault(multipliers, []).append(number)
    for multipliers, numbers in files.items():
        layers = [
            Layer(layer, stack[number].role(layer, roles[number]))
            for number in numbers
            for layer in stack[number].adapters
        ]
        names = listed([stack[number].adapters.name for number in numbers], 3, quoted)
        multipliers.check(layers, names)
