"""A whole file of adapters: layer name to adapter, and everything else that the file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..adapters import LayerAdapter


@dataclass(frozen=True)
class Unmatched:
    """A key of a file (or the layer it belongs to) that is not used, and why."""

    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class AdapterSet(Mapping[str, LayerAdapter]):
    """The adapters of one file, by layer name as the file spells it. Immutable.

    ``unmatched`` names every key that no algorithm could use. ``dialect`` is the name of the spelling that
    most layers follow. ``name`` is what messages call the file. ``notes`` say what is unusual about it, and
    what was done about that.
    """

    layers: Mapping[str, LayerAdapter]
    unmatched: tuple[Unmatched, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "unknown"
    name: str = "adapter"
    notes: tuple[str, ...] = ()

    def __getitem__(self, layer: str) -> LayerAdapter:
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(layer.size_bytes for layer in self.layers.values())
