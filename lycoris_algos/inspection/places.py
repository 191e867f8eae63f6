"""Which block of the model a layer is in, and what it does there."""

from __future__ import annotations

from dataclasses import dataclass

from ..model_files import KnownModel


@dataclass(frozen=True)
class Place:
    """The block and the kind of a layer; "other" where no rule knows it."""

    block: str = "other"
    kind: str = "other"


class Places:
    """The places of layers in the model ``known``, or by their names where none is."""

    def __init__(self, known: KnownModel | None) -> None:
        self._known = known

    def of(self, layer: str) -> Place:
        """The place of ``layer``."""
        return Place()
