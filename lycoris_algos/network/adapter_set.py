"""A whole file of adapters: layer name to adapter, and everything else that the file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..adapters import LayerAdapter
from ..text import Brief, quoted


@dataclass(frozen=True)
class Unmatched(Brief):
    """A key of a file (or the layer it belongs to) that is not used, and why."""

    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class AdapterSet(Brief, Mapping[str, LayerAdapter]):
    """The adapters of one file, by layer name as the file spells it. Immutable.

    ``unmatched`` names every key that no algorithm could use. ``dialect`` is the name of the spelling that
    most layers follow. ``name`` is what messages call the file. ``notes`` say what is unusual about it, and
    what was done about that. ``embeddings`` are vectors for words of a prompt that came with the file, by
    name and by what they are for (bundles.py). ``unread`` are the tensors of ``unmatched``, which are written
    again as they were.
    """

    layers: Mapping[str, LayerAdapter]
    unmatched: tuple[Unmatched, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "unknown"
    name: str = "adapter"
    notes: tuple[str, ...] = ()
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    unread: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"AdapterSet({quoted(self.name)}, {self.dialect}, {len(self)} layers)"

    def __getitem__(self, layer: str) -> LayerAdapter:
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        layers = sum(layer.size_bytes for layer in self.layers.values())
        vectors = (tensor for parts in self.embeddings.values() for tensor in parts.values())
        return layers + sum(value.numel() * value.itemsize for value in (*vectors, *self.unread.values()))
