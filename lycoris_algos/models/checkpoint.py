"""Which part of a checkpoint's tensors a layer name of an adapter file means.

A checkpoint is known by the names and shapes in its header, so its own keys are indexed: the diffusion model
under its own paths, a UNet under diffusers' as well (checkpoint_unet.py), other families under what
``names_in`` knows, and text encoders under the paths of the transformers library (checkpoint_text.py).
Nothing here knows what a file is *supposed* to contain: what is there is found.

A path does not always mean a whole tensor: OpenCLIP keeps q, k and v in one, and a projection transposed. So
the answer is a ``Spot``. And it may have several meanings, as in a checkpoint with two CLIPs: all are
offered, best first, and an adapter held against the shapes decides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from . import Located, names_in

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
    #: ComfyUI's name of the text encoder that it belongs to.
    encoder: str | None = None


class Names:
    """Places by path, dotted or with underscores for dots."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[Place, None]] = defaultdict(dict)
        self._flat: dict[str, dict[Place, None]] = defaultdict(dict)

    def add(self, path: str, where: Place) -> None:
        """Adds a meaning of ``path``, after those that it has."""
        self._exact[path].setdefault(where)
        self._flat[_flat(path)].setdefault(where)

    def look_up(self, path: str) -> Iterator[Place]:
        """What ``path`` may mean, best first: to the letter if anything is, else with dots as underscores."""
        yield from self._exact.get(path) or self._flat.get(_flat(path)) or ()

    def __len__(self) -> int:
        return len(self._exact)


@dataclass(frozen=True, eq=False)
class CheckpointIndex:
    """The layers that a checkpoint has, and what its tensors belong to.

    ``model`` and ``text`` are the layers of the diffusion model and of the text encoders, which ``encoders``
    names in the order of their numbers. ``parts`` says of every key that belongs to one of them, or to the
    VAE: "model", "text", "vae".
    """

    model: Names = field(default_factory=Names)
    text: Names = field(default_factory=Names)
    encoders: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """What the checkpoint holds that adapters can change, in words."""
        kinds = ((self.model, "a diffusion model"), (self.text, "text encoders"))
        return " and ".join(words for names, words in kinds if len(names)) or "no model"


# Where a checkpoint keeps its diffusion model: the first of these below which there is enough of one.
_MODEL_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "model.")
_ENOUGH = 5
_VAE = re.compile(r"(first_stage_model|vae|pretransform)\.")
# What a file without a prefix for its diffusion model may hold besides it.
_OTHER = re.compile(
    r"(conditioner|cond_stage_model|text_encoders?|embedder|clip_vision|model_ema|denoiser|control_model|loss)\."
)


def index_checkpoint(shapes: Shapes) -> CheckpointIndex:
    """What a checkpoint of {key: shape} holds; keys in the order of the file."""
    from . import checkpoint_text, checkpoint_unet

    text = Names()
    parts: dict[str, str] = {}
    encoders = checkpoint_text.encoders(shapes)
    for encoder in encoders:
        parts.update(dict.fromkeys(encoder.keys, "text"))
        for path, where in encoder.names():
            text.add(path, where)
    parts.update((key, "vae") for key in shapes if key not in parts and _VAE.match(key))
    model = Names()
    prefix = _model_prefix(shapes, parts)
    if prefix is not None:
        own = [key for key in shapes if key.startswith(prefix) and key not in parts]
        own = own if prefix else [key for key in own if not _OTHER.match(key)]
        parts.update(dict.fromkeys(own, "model"))
        inside = {key[len(prefix) :]: shapes[key] for key in own}
        for key in inside:
            model.add(key.removesuffix(".weight"), _below(prefix, place(key, inside)))
        for path, where in checkpoint_unet.diffusers_names(inside):
            model.add(path, _below(prefix, where))
        weights = {key: shape for key, shape in inside.items() if not key.endswith(".bias")}
        for path, located in names_in(weights):
            model.add(path, _below(prefix, _located(located, inside)))
    return CheckpointIndex(model, text, tuple(encoder.name for encoder in encoders), parts)


def place(key: str, shapes: Shapes) -> Place:
    """The tensor ``key``, and the bias beside it."""
    bias = key.removesuffix(".weight") + ".bias"
    has_bias = key.endswith(".weight") and bias in shapes
    return Place(Spot(key), Spot(bias) if has_bias else None)


def _located(located: Located, shapes: Shapes) -> Place:
    part = None if located.rows is None else (0, *located.rows)
    whole = place(located.key, shapes)
    bias = None if whole.bias is None else replace(whole.bias, part=part, swapped=located.swapped)
    return Place(replace(whole.weight, part=part, swapped=located.swapped), bias)


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _model_prefix(shapes: Shapes, parts: Mapping[str, str]) -> str | None:
    """What the diffusion model's keys begin with; "" if they are bare, None if there is no such model."""
    rest = [key for key in shapes if key not in parts]
    for prefix in _MODEL_PREFIXES:
        if sum(key.startswith(prefix) for key in rest) > _ENOUGH:
            return prefix
    bare = any(len(shapes[key]) >= 2 and not _OTHER.match(key) for key in rest)
    return "" if bare else None


def _below(prefix: str, where: Place) -> Place:
    bias = None if where.bias is None else replace(where.bias, key=prefix + where.bias.key)
    return Place(replace(where.weight, key=prefix + where.weight.key), bias)
