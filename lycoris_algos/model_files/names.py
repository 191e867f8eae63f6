"""Index of the names that a model's parameters have: their paths, and what other programs call them.

A name of a file is looked up without its trainer's prefix, as it stands and with underscores for dots. So
every path is known under every prefix, dotted and flattened, whoever brought it in, in the order of trust;
and the weight of a norm under one name, whatever the model, the file or the dialect calls it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from ..models import layer_of
from .places import Spot, Spots

# More than any model has for a name: every layer of that name is tried at all of them.
_MOST_MEANINGS = 32


class NameIndex:
    """Spots by path, dotted or with underscores for dots."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[Spot, None]] = defaultdict(dict)
        self._flat: dict[str, dict[Spot, None]] = defaultdict(dict)
        self._pieces: dict[str, Spots] = {}

    def add(self, path: str, spot: Spot) -> None:
        """Adds a meaning of ``path``, after those that it has."""
        path = layer_of(path)
        for meanings in (self._exact[path], self._flat[flattened(path)]):
            if len(meanings) < _MOST_MEANINGS:
                meanings.setdefault(spot)

    def add_pieces(self, path: str, spots: Spots) -> None:
        """Notes that the model stores the layer ``path`` in pieces, at ``spots``."""
        self._pieces.setdefault(flattened(layer_of(path)), spots)

    def pieces(self, path: str) -> Spots | None:
        """The pieces in which the model stores the layer ``path``; None if it is not known to."""
        return self._pieces.get(flattened(layer_of(path)))

    def look_up(self, path: str) -> Collection[Spot]:
        """What ``path`` may mean, best first: to the letter if anything is, else with dots as underscores."""
        path = layer_of(path)
        return self._exact.get(path) or self._flat.get(flattened(path)) or ()

    def __len__(self) -> int:
        return len(self._exact)


def flattened(path: str) -> str:
    """``path`` as kohya writes it."""
    return path.replace(".", "_")
