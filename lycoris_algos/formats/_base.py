"""The class ``Dialect``: how one trainer spells the names of layers and of their tensors. Strings only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..text import Brief

#: How PEFT calls the tensors of a LoRA; everything else is as LyCORIS calls it.
PEFT_SUFFIXES: Mapping[str, str] = {
    "lora_up.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_magnitude_vector": "lora_magnitude_vector",
}

#: How paths begin that only text encoders have: CLIP's, T5's and language models'.
TEXT_PATHS = ("text_model.", "encoder.block.", "model.layers.")
_FLAT_TEXT_PATHS = tuple(path.replace(".", "_") for path in TEXT_PATHS)


@dataclass(frozen=True, eq=False)
class Dialect(Brief):
    """How a trainer spells names.

    ``model_prefixes`` begin the name of a layer of the diffusion model, ``text_prefixes`` that of a text
    encoder's; what follows is the path of the layer in its model, in the trainer's own separators. A text
    prefix maps to what stands in its place in ComfyUI's text encoders: nothing where the path begins inside
    the encoder, the encoder's name where the prefix tells it.
    """

    name: str
    title: str
    model_prefixes: tuple[str, ...]
    text_prefixes: Mapping[str, str] = field(default_factory=dict)
    #: Whether the prefixes of the model are themselves the beginnings of paths.
    bare: bool = False
    #: Whether a file holds one wrapped component, so that a model's prefix may also name a text encoder.
    any_component: bool = False
    #: Suffix as LyCORIS spells it: as this dialect does, where that differs.
    suffixes: Mapping[str, str] = field(default_factory=dict)

    def speaks(self, layer: str) -> bool:
        """Whether ``layer`` is spelled this way."""
        return layer.startswith((*self.model_prefixes, *self.text_prefixes))

    def is_text(self, layer: str) -> bool:
        """Whether ``layer`` names a layer of a text encoder, by its prefix or else by its path."""
        if not self.any_component or layer.startswith(tuple(self.text_prefixes)):
            return layer.startswith(tuple(self.text_prefixes))
        paths = (layer.removeprefix(prefix) for prefix in self.model_prefixes if layer.startswith(prefix))
        return any(path.replace(".", "_").startswith(_FLAT_TEXT_PATHS) for path in paths)

    def render(self, layer: str, suffix: str) -> str:
        """The key of the tensor ``suffix`` (LyCORIS' spelling) of ``layer`` (this dialect's spelling)."""
        return f"{layer}.{self.suffixes.get(suffix, suffix)}"
