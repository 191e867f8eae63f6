"""Whether a file was made for the model that it is held against, as far as names and counts tell.

Models of different families have layers of the same names and sizes, and adapters fit there by chance.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from ..io import base_model
from ..models import families_of, identify
from ..network import AdapterSet
from ..text import Brief, listed
from .index import L, ModelIndex
from .layers import LayerIndex


def advice(adapters: AdapterSet, index: ModelIndex[LayerIndex]) -> str:
    """What to do about a file of which nothing fits the model."""
    trained = identify(adapters, adapters.metadata)
    if trained in _titles(index):
        return (
            f"It was trained for {trained}, as this model is, but for one of other sizes: "
            "use it with that version, or remove it."
        )
    kind = base_model(adapters.metadata) or trained or "another kind of model"
    return f"It was trained for {kind}: use it with that, or remove it."


def doubts(adapters: AdapterSet, index: ModelIndex[LayerIndex], placed: int, total: int) -> list[str]:
    """What speaks against a file of which ``placed`` of ``total`` layers fit the model, in words."""
    if not 0 < placed < total:
        return []
    trained, own = identify(adapters, adapters.metadata), _titles(index)
    if trained is not None and own and trained not in own:
        return [
            f"its layers are named as for {trained}, and the model is {listed(own)}: "
            "what fits was trained on other weights, and may do harm"
        ]
    if 2 * placed < total:
        return [
            "most of its layers do not fit, as where a file was trained for another model: what fits may do "
            "so by its size alone, and do harm"
        ]
    return []


def family_title(index: ModelIndex[L]) -> str | None:
    """What family the diffusion model is of, as far as its parameters tell; None if there is none."""
    titles = _titles(index)
    if titles or index.model is None:
        return listed(titles) or None
    if not index.model.names.look_up("input_blocks.0.0"):
        return None
    return "SDXL" if index.model.names.look_up("label_emb.0.0") else "Stable Diffusion 1 or 2"


def _titles(index: ModelIndex[L]) -> list[str]:
    """The families that the diffusion model is known to be of."""
    return [] if index.model is None else [family.title for family in families_of(_Parameters(index.model))]


@dataclass(frozen=True)
class _Parameters(Brief, Container[str]):
    """The parameters of a diffusion model, by their keys in ComfyUI's module."""

    half: LayerIndex

    def __contains__(self, key: object) -> bool:
        name = str(key)
        spots = self.half.names.look_up(name.removesuffix(".weight"))
        return any(f".{spot.key}".endswith(f".{name}") and spot.part is None for spot in spots)
