"""A stack: adapter sets in the order in which they are applied, each with its own strengths."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import BadValueError
from ..text import Brief, quoted, single_line
from .adapter_set import AdapterSet

# What a number of a file times a strength stays within float32 for.
_LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class StackEntry(Brief):
    """An adapter set and its strengths: one for the layers of the diffusion model, one for text encoders.

    Fields added later have defaults, so that entries that were made before them stay valid. Raises
    BadValueError for a strength that is not finite, or so large that no weight could hold the change.
    """

    adapters: AdapterSet
    strength_model: float = 1.0
    strength_clip: float = 1.0

    def __post_init__(self) -> None:
        for value in (self.strength_model, self.strength_clip):
            if not -_LARGEST <= value <= _LARGEST:
                raise BadValueError(
                    f"the strength of {quoted(self.adapters.name)} is {value:g}, but must lie between "
                    f"{-_LARGEST:g} and {_LARGEST:g}"
                )

    def multiplier(self, is_text: bool) -> float:
        """The multiplier of its layers of text encoders, or of the diffusion model."""
        return self.strength_clip if is_text else self.strength_model

    def scaled(self, strength_model: float, strength_clip: float) -> StackEntry:
        """The same with the strengths of a whole stack folded in."""
        return replace(
            self,
            strength_model=self.strength_model * strength_model,
            strength_clip=self.strength_clip * strength_clip,
        )

    def __str__(self) -> str:
        name = single_line(self.adapters.name)
        return f"{name} at {self.strength_model:g} (clip {self.strength_clip:g})"


Stack = tuple[StackEntry, ...]
