"""Which part of a checkpoint's tensors a layer name of an adapter file means.

A checkpoint is known by the names and shapes in its header, so its own keys are indexed: the diffusion model
under its own paths, a UNet under diffusers' as well (unet.py), other families under what ``models`` knows,
and text encoders under the paths of the transformers library (text_encoders.py). Nothing here knows what a
file is *supposed* to contain: what is there is found. What diffusers saved has diffusers' names, and is
indexed under those of the original code as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..io import TensorInfo
from ..models import diffusers_names_in, names_in, native_names_in
from ..models.unet import original_names, unet_names
from .index import ModelIndex
from .layers import LayerIndex, Paths
from .names import NameIndex
from .places import Shapes, Spot, Spots, family_spot
from .storage import hides_shape, is_companion, refuse_file
from .text_encoders import UNNAMED, Encoder, encoder_paths, encoders


@dataclass(frozen=True, eq=False)
class CheckpointIndex(ModelIndex[LayerIndex]):
    """The layers that a checkpoint has, and what its tensors belong to.

    ``parts`` says of every key that belongs to the diffusion model, to a text encoder or to the VAE: "model",
    "text", "vae".
    """

    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """What the checkpoint holds that adapters can change, in words."""
        halves = ((self.model, "a diffusion model"), (self.text, "text encoders"))
        return " and ".join(words for half, words in halves if half is not None) or "no model"


# Where a checkpoint keeps its diffusion model: the first of these with more keys than that. Some of the words
# may mean something else in a file that has few.
_MODEL_PREFIXES = {
    "unet/": 0,
    "transformer/": 0,
    "prior/": 0,
    "model.diffusion_model.": 0,
    "diffusion_model.": 0,
    "model.model.": 5,
    "net.": 5,
    "model.": 5,
}
_VAE = re.compile(r"(first_stage_model|pretransform)\.|vae[./]")
# What a file without a prefix for its diffusion model may hold besides it.
_OTHER = re.compile(
    r"(conditioner|cond_stage_model|text_encoders?|embedder|clip_vision|model_ema|denoiser|control_model|loss)\."
)


def index_header(tensors: Mapping[str, TensorInfo]) -> CheckpointIndex:
    """What the file with these tensors holds. Raises LycorisError for one that hides its weights."""
    refuse_file(tensors)
    shapes = {key: info.shape for key, info in tensors.items() if not is_companion(key)}
    return index_checkpoint(shapes, frozenset(key for key in shapes if hides_shape(key, tensors)))


def index_checkpoint(shapes: Shapes, packed: frozenset[str] = frozenset()) -> CheckpointIndex:
    """What a checkpoint of {key: shape} holds; keys in the order of the file.

    ``packed`` are the keys of weights whose shape is not the layer's.
    """
    recognised = encoders(shapes)
    parts = {key: "text" for encoder in recognised for key in encoder.keys}
    parts.update((key, "vae") for key in shapes if key not in parts and _VAE.match(key))
    prefix = _model_prefix(shapes, parts)
    own = [] if prefix is None else [key for key in shapes if key.startswith(prefix) and key not in parts]
    own = own if prefix else [key for key in own if not _OTHER.match(key)]
    parts.update(dict.fromkeys(own, "model"))
    return CheckpointIndex(
        _model_layers(prefix or "", own, shapes, packed) if own else None,
        _text_layers(recognised, shapes, packed) if recognised else None,
        parts,
    )


def _text_layers(recognised: list[Encoder], shapes: Shapes, packed: frozenset[str]) -> LayerIndex:
    names = NameIndex()
    for encoder in recognised:
        for inner, spot in encoder.layers.items():
            for path in encoder_paths(encoder.name, inner):
                names.add(path, spot)
    paths = {
        spot: next(encoder_paths(encoder.name, inner))
        for encoder in recognised
        for inner, spot in encoder.layers.items()
        if encoder.name != UNNAMED
    }
    return LayerIndex(
        what="the file's text encoder",
        is_text=True,
        names=names,
        shape_of=shapes.get,
        packed=packed,
        encoder_of={key: encoder.name for encoder in recognised for key in encoder.keys},
        find_paths=lambda: Paths(own=paths),
    )


def _model_layers(prefix: str, keys: list[str], shapes: Shapes, packed: frozenset[str]) -> LayerIndex:
    """The layers of the diffusion model whose ``keys`` begin with ``prefix``."""
    inside = {key.removeprefix(prefix): shapes[key] for key in keys}
    names = NameIndex()
    for key in inside:
        names.add(key.removesuffix(".weight"), Spot(prefix + key))
    for path, key in unet_names(inside):
        names.add(path, Spot(prefix + key))
    for path, located in names_in(_without_biases(inside)):
        names.add(path, family_spot(located, prefix))
    for path, spots in _native_spots(inside, prefix):
        if len(spots) == 1:
            names.add(path, spots[0])
        else:
            names.add_pieces(path, spots)
    return LayerIndex(
        what="the file's diffusion model",
        names=names,
        shape_of=shapes.get,
        packed=packed,
        find_paths=lambda: model_paths_of(inside, prefix),
    )


def _native_spots(inside: Shapes, prefix: str) -> Iterator[tuple[str, Spots]]:
    """(path in ComfyUI's model, where that is) of a model in diffusers' names; nothing for any other."""
    original = list(original_names(inside))
    for path, key in original:
        yield path, (Spot(prefix + key),)
    for path, located in () if original else native_names_in(_without_biases(inside)):
        yield path, tuple(family_spot(own, prefix) for own in located)


def model_paths_of(inside: Shapes, prefix: str) -> Paths:
    """What ComfyUI and diffusers call the places of a diffusion model.

    ``inside`` is {key: shape} without the ``prefix`` of its keys.
    """
    own = {Spot(prefix + key): key.removesuffix(".weight") for key in inside}
    diffusers: dict[Spot, str] = {}
    native = list(_native_spots(inside, prefix))
    if native:
        component = "unet" if "conv_in.weight" in inside else "transformer"
        diffusers = {spot: f"{component}.{path}" for spot, path in own.items()}
        # The first meaning counts: later ones are of families that are less likely.
        return Paths({spots[0]: path for path, spots in reversed(native) if len(spots) == 1}, diffusers)
    for path, key in unet_names(inside):
        diffusers.setdefault(Spot(prefix + key), f"unet.{path}")
    for path, located in diffusers_names_in(_without_biases(inside)):
        diffusers.setdefault(family_spot(located, prefix), f"transformer.{path}")
    return Paths(own, diffusers)


def _without_biases(shapes: Shapes) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not key.endswith(".bias")}


def _model_prefix(shapes: Shapes, parts: Mapping[str, str]) -> str | None:
    """What the diffusion model's keys begin with; "" if they are bare, None if there is no such model."""
    rest = [key for key in shapes if key not in parts]
    for prefix, more_than in _MODEL_PREFIXES.items():
        if sum(key.startswith(prefix) for key in rest) > more_than:
            return prefix
    bare = any(len(shapes[key]) >= 2 and not _OTHER.match(key) for key in rest)
    return "" if bare else None
