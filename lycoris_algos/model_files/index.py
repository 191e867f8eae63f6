"""Where in a model the layers of adapter files belong, and the one rule for text encoder or diffusion model.

What the model has, and what of it the adapter's shapes fit, decides. The half that the name's own dialect
says is looked at first, and is what a layer belongs to of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from ..errors import LycorisError, ShapeMismatchError
from ..formats import is_text_layer
from ..models import Role
from ..network import AdapterSet, Unmatched
from ..text import Brief
from .layers import LayerIndex
from .overlaps import overlaps
from .places import Spots

L = TypeVar("L", bound=LayerIndex)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Found(Brief, Generic[L, T]):
    """A meaning of a layer's name that was taken: where in the model, and what was made of it there."""

    half: L
    spots: Spots
    made: T

    @property
    def is_text(self) -> bool:
        """Whether it is in a text encoder."""
        return self.half.is_text

    @property
    def role(self) -> Role | None:
        """What the layer is in the model, as far as that is known."""
        return self.half.role(self.spots)


@dataclass(frozen=True, eq=False)
class Placement(Brief, Generic[L, T]):
    """What became of layers. ``left_out`` are those of a half that is not there: is it the text encoders?

    ``doubled`` says of layers that change the same weight as others of their file what was done about it.
    """

    placed: Mapping[str, Found[L, T]]
    unmatched: tuple[Unmatched, ...]
    left_out: Mapping[str, bool]
    doubled: tuple[Unmatched, ...] = ()

    def role(self, layer: str) -> Role | None:
        """What ``layer`` is in the model; None if it has no place there."""
        place = self.placed.get(layer)
        return None if place is None else place.role


@dataclass(frozen=True, eq=False)
class ModelIndex(Brief, Generic[L]):
    """The layer names that a model answers to, in its diffusion model and in its text encoders, if any."""

    model: L | None = None
    text: L | None = None

    def half(self, is_text: bool) -> L | None:
        """The text encoders, or the diffusion model; None if it is not there."""
        return self.text if is_text else self.model

    def meanings(self, layer: str) -> Iterator[tuple[L, Spots]]:
        """What ``layer`` may mean, best first."""
        by_name = is_text_layer(layer)
        for half in (self.half(by_name), self.half(not by_name)):
            if half is not None:
                yield from ((half, spots) for spots in half.meanings(layer))

    def first(self, layer: str, attempt: Callable[[L, Spots], T]) -> Found[L, T] | str | None:
        """What ``attempt`` makes of the first meaning of ``layer`` at which it raises no LycorisError.

        Else the reason against the likeliest; None for a layer of a half that is not there.
        """
        reason = ""
        for half, spots in self.meanings(layer):
            try:
                return Found(half, spots, attempt(half, spots))
            except ShapeMismatchError as error:
                reason = reason or f"{error}: it was trained for another model"
            except LycorisError as error:
                reason = reason or str(error)
        if reason:
            return reason
        by_name = self.half(is_text_layer(layer))
        return None if by_name is None else f"{by_name.what} has no such layer"

    def place(self, adapters: AdapterSet, attempt: Callable[[str, L, Spots], T]) -> Placement[L, T]:
        """``first`` for each layer of ``adapters``, which ``attempt`` is told as well.

        A weight that several of them change is changed by those that ``overlaps`` chooses.
        """
        placed: dict[str, Found[L, T]] = {}
        unmatched: list[Unmatched] = []
        left_out: dict[str, bool] = {}
        for layer in adapters:
            place = self.first(layer, partial(attempt, layer))
            if isinstance(place, Found):
                placed[layer] = place
            elif place is None:
                left_out[layer] = is_text_layer(layer)
            else:
                unmatched.append(Unmatched(layer, place))
        meeting = overlaps(adapters, {layer: (place.half, place.spots) for layer, place in placed.items()})
        used = {layer: place for layer, place in placed.items() if layer not in meeting.unused}
        return Placement(used, tuple(unmatched), left_out, meeting.notes)
