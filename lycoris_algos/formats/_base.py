"""What a dialect is: how one trainer spells the names of layers. Strings only, no tensors, no models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """How a trainer spells layer names.

    ``model_prefixes`` begin the name of a layer of the diffusion model, ``text_prefixes`` that of a text
    encoder's; what follows is the path of the layer in its model, in the trainer's own separators.
    """

    name: str
    title: str
    model_prefixes: tuple[str, ...]
    text_prefixes: tuple[str, ...] = ()

    def speaks(self, layer: str) -> bool:
        """Whether ``layer`` is spelled this way."""
        return layer.startswith(self.model_prefixes) or self.is_text(layer)

    def is_text(self, layer: str) -> bool:
        """Whether ``layer`` names a layer of a text encoder."""
        return bool(self.text_prefixes) and layer.startswith(self.text_prefixes)
