"""The model that adapters were trained on, as far as it is known: what layer names mean in it, its weights.

It may be a loaded model, the file of one, or weights in memory. Without any, only names are compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from ..formats import encoder_number, is_text_layer, model_paths, text_paths
from ..models import Role, layer_of
from ..network import AdapterSet, Part
from ..ops.rows import stacked
from ..text import Brief
from .families import family_title
from .index import Found, L, ModelIndex
from .overlaps import Overlaps, overlaps
from .places import Shape, Spot, Spots


class KnownModel(ABC):
    """The model that adapters were trained on. ``what`` is "weight" or "bias"."""

    @abstractmethod
    def shape(self, layer: str, what: str) -> Shape | None:
        """The shape of a parameter of ``layer``, or None if there is none. Cheap: asked for every layer."""

    @abstractmethod
    def fetch(self, layer: str, what: str) -> Tensor:
        """Itself, on any device and in any dtype; called only where ``shape`` answered."""

    def same_layer(self, layer: str) -> Hashable | None:
        """What ``layer`` means, in any terms that can be compared; None if that is not known."""
        return None

    def is_text(self, layer: str) -> bool:
        """Whether ``layer`` is one of a text encoder: by what it means, else as its name's dialect says."""
        return is_text_layer(layer)

    def role(self, layer: str) -> Role | None:
        """What ``layer`` is in the model: its block and its kind; None if that is not known."""
        return None

    def family(self) -> str:
        """The title of the model family that it is of, "" where that is not known."""
        return ""

    def target(self, layer: str) -> str | None:
        """What the weight that ``layer`` means is called in the model; None if that is not known."""
        return None

    def refusal(self, layer: str) -> str:
        """Why the model cannot take what its adapter sets have for ``layer``; "" if it can."""
        return ""

    def dtype(self, layer: str) -> torch.dtype | None:
        """The number type that the weight of ``layer`` is stored in, as far as that is known."""
        return None

    def overlaps(self, adapters: AdapterSet) -> Overlaps:
        """Which layers of ``adapters`` change the same weight as others of them, as far as that is known."""
        return Overlaps()

    def spelled(self, layer: str, dialect: str) -> tuple[Part, ...] | None:
        """``layer`` as ``dialect`` spells it, in parts where that has other layers.

        Empty if the dialect has no name for some of it, None if it is not known what the layer is.
        """
        return None

    def record(self) -> Mapping[str, object]:
        """What a recipe says about the model."""
        return {}


@dataclass(frozen=True, eq=False)
class WeightsInMemory(Brief, KnownModel):
    """A model of which {layer: weight} and {layer: bias} are known."""

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    def shape(self, layer: str, what: str) -> Shape | None:
        tensor = (self.weights if what == "weight" else self.biases).get(layer)
        return None if tensor is None else tuple(tensor.shape)

    def fetch(self, layer: str, what: str) -> Tensor:
        return (self.weights if what == "weight" else self.biases)[layer]

    def target(self, layer: str) -> str | None:
        return f"{layer}.weight" if layer in self.weights else None

    def refusal(self, layer: str) -> str:
        return "" if layer in self.weights or layer in self.biases else "the model has no such layer"

    def dtype(self, layer: str) -> torch.dtype | None:
        return self.weights[layer].dtype if layer in self.weights else None


class IndexedModel(KnownModel, Generic[L]):
    """A model whose layers are indexed.

    ``sets`` are the adapter sets it will be asked about: a name that has several meanings means the first
    that all adapters of this name fit.
    """

    def __init__(self, index: ModelIndex[L], sets: Sequence[AdapterSet]) -> None:
        self.index = index
        self._sets = sets
        self._known: dict[str, Found[L, Spots] | None] = {}

    @abstractmethod
    def read(self, half: L, spot: Spot) -> Tensor:
        """The numbers at ``spot`` as the layer was trained on them."""

    def require_readable(self, spot: Spot) -> None:
        """Raises LycorisError if ``spot`` is stored in a way that hides its numbers."""

    def unusable(self, spot: Spot) -> str:
        """Why ``spot`` is no weight although it has a name, in words, or ""."""
        return ""

    def asides(self) -> Sequence[str]:
        """What the model holds besides its weights that a user may take for them, each as "holds …"."""
        return ()

    def stored_dtype(self, half: L, spot: Spot) -> torch.dtype | None:
        """The number type of the parameter of ``spot``, as far as that is known."""
        return None

    def family(self) -> str:
        return family_title(self.index) or ""

    def target(self, layer: str) -> str | None:
        place = self._find(layer)
        return None if place is None else " + ".join(dict.fromkeys(spot.key for spot in place.made))

    def refusal(self, layer: str) -> str:
        place = self._first(layer, whole=True)
        if isinstance(place, str):
            return place
        return "" if place is not None else "the half of the model that it belongs to is not there"

    def dtype(self, layer: str) -> torch.dtype | None:
        place = self._find(layer)
        return None if place is None else self.stored_dtype(place.half, place.made[0])

    def shape(self, layer: str, what: str) -> Shape | None:
        place, spots = self._find(layer), self._spots(layer, what)
        if place is None or not spots or any(spot.function is not None for spot in spots):
            return None
        if any(spot.key in place.half.packed for spot in spots):
            return None
        return place.half.shape(spots)

    def fetch(self, layer: str, what: str) -> Tensor:
        place = self._find(layer)
        assert place is not None  # asked only where `shape` answered
        return stacked([self.read(place.half, spot) for spot in self._spots(layer, what)])

    def same_layer(self, layer: str) -> Hashable | None:
        place = self._find(layer)
        return None if place is None else (place.is_text, place.made)

    def is_text(self, layer: str) -> bool:
        place = self._find(layer)
        return is_text_layer(layer) if place is None else place.is_text

    def role(self, layer: str) -> Role | None:
        place = self._find(layer)
        return None if place is None else place.role

    def overlaps(self, adapters: AdapterSet) -> Overlaps:
        places = {layer: place for layer in adapters if (place := self._find(layer)) is not None}
        return overlaps(adapters, {layer: (place.half, place.spots) for layer, place in places.items()})

    def spelled(self, layer: str, dialect: str) -> tuple[Part, ...] | None:
        place = self._find(layer)
        if place is None:
            return None
        parts = place.half.spelled(dialect, place.made)
        # Not every text encoder's names are known here, but those of transformers are the same everywhere.
        return None if place.is_text and not parts else parts

    def _spots(self, layer: str, what: str) -> Spots:
        """The weights or biases of the layer, in the order of their rows; none if one is missing."""
        place = self._find(layer)
        if place is None or what == "weight":
            return () if place is None else place.made
        biases = [place.half.bias_of(spot) for spot in place.made]
        known = tuple(bias for bias in biases if bias is not None)
        return known if len(known) == len(biases) else ()

    def _find(self, layer: str) -> Found[L, Spots] | None:
        if layer not in self._known:
            # Where nothing takes all of the adapters, what takes their weights is still what they mean.
            tried = (self._first(layer, whole=whole) for whole in (True, False))
            self._known[layer] = next((place for place in tried if isinstance(place, Found)), None)
        return self._known[layer]

    def _first(self, layer: str, *, whole: bool) -> Found[L, Spots] | str | None:
        """See ``ModelIndex.first``."""
        adapters = [own[layer] for own in self._sets if layer in own]

        def attempt(half: L, spots: Spots) -> Spots:
            for adapter in adapters:
                (half.check if whole else half.check_weight)(adapter, spots)
            return spots

        return self.index.first(layer, attempt)


def meaning(layer: str, known: KnownModel | None) -> Hashable:
    """What ``layer`` means, in terms that can be compared: its place in the model, else its own path.

    Without a model, names are compared without their dialect's prefix and with one separator.
    """
    place = None if known is None else known.same_layer(layer)
    return ("name", _normalised(layer)) if place is None else ("known", place)


def _normalised(layer: str) -> Hashable:
    """The layer's path with nothing before it and one separator, and which text encoder, if any."""
    paths = text_paths(layer) if is_text_layer(layer) else model_paths(layer)
    path = layer_of(min(paths, key=len)).replace(".", "_")
    return (is_text_layer(layer), encoder_number(layer), path)
