"""The adapter sets of a combination, which of their layers mean the same, and where base weights come from.

Files of different trainers name the same layer differently. A caller who knows the model can say what a name
means (``same_layer``); otherwise names are compared without their dialect's prefix and with one separator,
which aligns dialects that follow the model's own paths. What has no partner is no error (adapters need not
change the same layers), but is reported where the spelling may be the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...adapters import LayerAdapter
from ...formats import encoder_number, is_text_layer, model_paths, text_paths
from ...network import StackEntry

#: What a layer name means, in any terms that can be compared; None if that is not known.
SameLayer = Callable[[str], Hashable | None]
#: Whether a layer name means one of a text encoder.
IsText = Callable[[str], bool]


class BaseWeights(Protocol):
    """Where the weights come from that adapters were trained on. ``what`` is "weight" or "bias"."""

    def shape(self, layer: str, what: str) -> tuple[int, ...] | None:
        """Its shape, or None if there is no such parameter. Cheap: asked for every layer."""

    def fetch(self, layer: str, what: str) -> Tensor:
        """Itself, on any device and in any dtype; called only where ``shape`` answered."""

    def record(self) -> Mapping[str, object]:
        """What a recipe says about the model that they are of."""


@dataclass(frozen=True, eq=False)
class WeightsInMemory:
    """``BaseWeights`` of {layer: weight}, and {layer: bias}."""

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    def shape(self, layer: str, what: str) -> tuple[int, ...] | None:
        """See ``BaseWeights``."""
        found = (self.weights if what == "weight" else self.biases).get(layer)
        return None if found is None else tuple(found.shape)

    def fetch(self, layer: str, what: str) -> Tensor:
        """See ``BaseWeights``."""
        return (self.weights if what == "weight" else self.biases)[layer]

    def record(self) -> Mapping[str, object]:
        """See ``BaseWeights``."""
        return {}


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one source says about one layer (or about its bias, which is then an adapter of its own)."""

    index: int
    name: str
    adapter: LayerAdapter
    multiplier: float
    is_text: bool


def grouped(
    sources: Sequence[StackEntry], same_layer: SameLayer | None, is_text: IsText = is_text_layer
) -> list[list[Contribution]]:
    """The layers of all sources, those that mean the same together, in order of first appearance.

    Contributions with multiplier 0 are left out.
    """
    groups: dict[Hashable, list[Contribution]] = {}
    for index, source in enumerate(sources):
        for name, adapter in source.adapters.items():
            of_text = is_text(name)
            multiplier = source.multiplier(of_text)
            if multiplier == 0.0:
                continue
            key = _meaning(name, same_layer)
            own = groups.setdefault(key, [])
            if own and own[-1].index == index:  # a second name for the same: kept apart, and both count
                own = groups.setdefault((key, name), [])
            own.append(Contribution(index, name, adapter, multiplier, of_text))
    return list(groups.values())


def alignment_notes(sources: Sequence[StackEntry], groups: Sequence[Sequence[Contribution]]) -> list[str]:
    """What could not be aligned although it may be the same: layers alone, in files of several dialects."""
    dialects = {source.adapters.dialect for source in sources}
    if len(dialects) < 2:
        return []
    notes = []
    for index, source in enumerate(sources):
        alone = [group[0].name for group in groups if len(group) == 1 and group[0].index == index]
        if alone:
            notes.append(
                f"{len(alone)} of {len(source.adapters)} layers of '{source.adapters.name}' (spelled as "
                f"{source.adapters.dialect}) have no partner in the other files, such as '{alone[0]}': if "
                "other files change the same layers under other names, give the model, which tells"
            )
    return notes


def _meaning(name: str, same_layer: SameLayer | None) -> Hashable:
    found = same_layer(name) if same_layer is not None else None
    return ("name", _normalised(name)) if found is None else ("known", found)


def _normalised(name: str) -> Hashable:
    """The layer's path with nothing before it and one separator, and which text encoder, if any."""
    paths = text_paths(name) if is_text_layer(name) else model_paths(name)
    path = min(paths, key=len).replace(".", "_")
    return (is_text_layer(name), encoder_number(name), path)
