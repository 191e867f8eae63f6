"""Which part of a checkpoint's tensors a layer name of an adapter file means.

A checkpoint is known by the names and shapes in its header, so its own keys are indexed: the diffusion model
under the flat and dotted names of its own paths (which is how most trainers spell them), a UNet under
diffusers' names as well (checkpoint_unet.py), text encoders under the names of the transformers library
(checkpoint_text.py). Nothing here knows what a file is *supposed* to contain: what is there is found.

A name does not always mean a whole tensor: OpenCLIP keeps q, k and v in one, and a projection transposed. So
the answer is a ``Spot``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Spot:
    """A tensor of a checkpoint, or a part of it, as an adapter of that layer sees it.

    ``part`` is (dimension, start, length). ``transposed``: a matrix that is stored the other way round.
    ``swapped``: the halves of the first dimension are stored in the other order.
    """

    key: str
    part: tuple[int, int, int] | None = None
    transposed: bool = False
    swapped: bool = False

    def shape(self, shapes: Shapes) -> Shape:
        """Its shape as the adapter sees it."""
        shape = shapes[self.key]
        if self.part is not None:
            dim, _, length = self.part
            shape = (*shape[:dim], length, *shape[dim + 1 :])
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class Place:
    """Where a layer's weight is, and its bias if it has one."""

    weight: Spot
    bias: Spot | None = None


@dataclass(frozen=True)
class CheckpointIndex:
    """The layer names that a checkpoint answers to, and what its tensors belong to.

    ``model`` and ``text`` are the names of the diffusion model's and of the text encoders' layers. ``parts``
    says of every key that belongs to one of them, or to the VAE: "model", "text", "vae".
    """

    model: Mapping[str, Place]
    text: Mapping[str, Place]
    parts: Mapping[str, str]

    @property
    def what(self) -> str:
        """What the checkpoint holds that adapters can change, in words."""
        found = [
            words
            for names, words in ((self.model, "a diffusion model"), (self.text, "text encoders"))
            if names
        ]
        return " and ".join(found) or "no model"


# Where a checkpoint keeps its diffusion model: the first of these below which there is enough of one.
_MODEL_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "model.")
_ENOUGH = 5
_VAE = re.compile(r"(first_stage_model|vae|pretransform)\.")
# What a file without a prefix for its diffusion model may hold besides it.
_OTHER = re.compile(
    r"(conditioner|cond_stage_model|text_encoders?|embedder|clip_vision|model_ema|denoiser|control_model|loss)\."
)
_FLUX_LINEAR1 = re.compile(r"(.*\bsingle_blocks\.\d+\.linear1)\.weight")
_ROOTS = ("diffusion_model.", "transformer.", "base_model.model.", "unet.", "")
_FLAT_ROOTS = ("lora_unet_", "lycoris_", "lora_transformer_", "lora_prior_unet_")


def index_checkpoint(shapes: Shapes) -> CheckpointIndex:
    """The names that a checkpoint of {key: shape} answers to; keys in the order of the file."""
    from . import checkpoint_text, checkpoint_unet

    text, text_keys = checkpoint_text.text_names(shapes)
    parts = dict.fromkeys(text_keys, "text")
    parts.update((key, "vae") for key in shapes if key not in parts and _VAE.match(key))
    prefix = _model_prefix(shapes, parts)
    if prefix is None:
        return CheckpointIndex({}, text, parts)
    own = [key for key in shapes if key.startswith(prefix) and key not in parts]
    if not prefix:
        own = [key for key in own if not _OTHER.match(key)]
    parts.update(dict.fromkeys(own, "model"))
    inside = {key[len(prefix) :]: shapes[key] for key in own}
    model: dict[str, Place] = {}
    # A name of the model's own wins over one that another program gives to something else.
    for names in (checkpoint_unet.diffusers_names(inside), dict(_own_names(inside))):
        model.update({name: _below(prefix, where) for name, where in names.items()})
    return CheckpointIndex(model, text, parts)


def place(key: str, shapes: Shapes) -> Place:
    """The tensor ``key``, and the bias beside it."""
    bias = key.removesuffix(".weight") + ".bias"
    has_bias = key.endswith(".weight") and bias in shapes
    return Place(Spot(key), Spot(bias) if has_bias else None)


def flat(path: str) -> str:
    """``path`` as kohya and LyCORIS spell it."""
    return path.removesuffix(".weight").replace(".", "_")


def model_spellings(path: str) -> Iterator[str]:
    """Every way to spell the layer at ``path`` (dotted, without ".weight") of a diffusion model."""
    for root in _FLAT_ROOTS:
        yield root + flat(path)
    for root in _ROOTS:
        yield root + path


def _model_prefix(shapes: Shapes, parts: Mapping[str, str]) -> str | None:
    """What the diffusion model's keys begin with; "" if they are bare, None if there is no such model."""
    rest = [key for key in shapes if key not in parts]
    for prefix in _MODEL_PREFIXES:
        if sum(key.startswith(prefix) for key in rest) > _ENOUGH:
            return prefix
    bare = any(len(shapes[key]) >= 2 and not _OTHER.match(key) for key in rest)
    return "" if bare else None


def _own_names(inside: Shapes) -> Iterator[tuple[str, Place]]:
    for key, shape in inside.items():
        if key.endswith(".bias"):
            yield f"diffusion_model.{key}", Place(Spot(key))
            continue
        where = place(key, inside)
        for name in model_spellings(key.removesuffix(".weight")):
            yield name, where
        match = _FLUX_LINEAR1.fullmatch(key)
        if match is not None and len(shape) == 2:
            rows = (0, 0, 3 * shape[1])
            bias = None if where.bias is None else replace(where.bias, part=rows)
            yield f"diffusion_model.{match[1]}_qkv", Place(replace(where.weight, part=rows), bias)


def _below(prefix: str, where: Place) -> Place:
    bias = None if where.bias is None else replace(where.bias, key=prefix + where.bias.key)
    return Place(replace(where.weight, key=prefix + where.weight.key), bias)
