"""Which weight a layer name of a file means in a loaded model.

ComfyUI knows the names of every family it supports, so its own key maps are asked, never copied. What they
leave out comes from the model's own keys (all of them, under every trainer's prefix; core has the LyCORIS
wrapper's for some families only, of text encoders no norms and embeddings) and from ``lycoris_algos.models``
(diffusers' names of families that core knows under one name only).

A name may have several meanings: the number of a text encoder, for one, depends on who counted. Which one is
right shows when an adapter is held against the shapes (matching.py), so all of them are offered, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils

from ...lycoris_algos.formats import encoder_number, model_paths, text_paths
from ...lycoris_algos.models import Located, names_in, split_names
from .names import NameIndex, Target, encoder_of, encoder_paths, flattened, parameter_path
from .patch import FUNCTION, INVOLUTION, PLAIN

_MODEL = "diffusion_model."


@dataclass(frozen=True)
class Place:
    """Where a layer of a file goes: the whole of it, or its rows (start, count, of how many)."""

    target: Target
    rows: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Targets:
    """The layer names that a model answers to. ``what`` names the model for people."""

    what: str
    index: NameIndex
    patcher: Any
    #: Paths in the model that a layer's name may mean.
    paths: Callable[[str], Iterable[str]]
    #: Names of the text encoders, in the order of the CLIP.
    encoders: tuple[str, ...] = ()

    def find(self, layer: str) -> Iterator[tuple[Place, ...]]:
        """The possible meanings of ``layer``, best first.

        Each is one place, or several where the file has one layer for what the model stores in pieces.
        """
        paths = list(dict.fromkeys(self.paths(layer)))
        found = dict.fromkeys(target for path in paths for target in self.index.look_up(path))
        for target in self._preferred(layer, found):
            if self.shape(target) is not None:
                yield (Place(target),)
        for path in paths:
            for names in split_names(flattened(path)):
                pieces = [next(iter(self.index.look_up(name)), None) for name in names]
                places = self._pieces(pieces)
                if places:
                    yield places

    def answers_to(self, layer: str) -> bool:
        """Whether ``layer`` means anything here."""
        return next(self.find(layer), None) is not None

    def _preferred(self, layer: str, targets: Iterable[Target]) -> list[Target]:
        """``targets`` with those first that are in the text encoder which the name numbers."""
        number = encoder_number(layer)
        if number is None or number > len(self.encoders):
            return list(targets)
        meant = self.encoders[number - 1]
        return sorted(targets, key=lambda target: not isinstance(target, str) or encoder_of(target) != meant)

    def _pieces(self, pieces: list[Target | None]) -> tuple[Place, ...]:
        """The places of a layer whose rows are those of ``pieces`` in order; empty if one is missing."""
        counts = []
        for target in pieces:
            shape = None if target is None else self.shape(target)
            if not shape:
                return ()
            counts.append(shape[0])
        targets = [target for target in pieces if target is not None]
        joined = self._joined(targets, counts)
        if joined is not None:
            return (Place(joined),)
        starts = [sum(counts[:number]) for number in range(len(counts))]
        return tuple(
            Place(target, (start, count, sum(counts)))
            for target, start, count in zip(targets, starts, counts, strict=True)
        )

    def _joined(self, targets: list[Target], counts: list[int]) -> Target | None:
        """The one target that slices of one weight, one after the other, make; None if they do not."""
        key, *rest = targets[0] if isinstance(targets[0], tuple) else (None,)
        if key is None or len(rest) != 1 or rest[0][0] != 0:
            return None
        first = rest[0][1]
        starts = [first + sum(counts[:number]) for number in range(len(counts))]
        slices = [(key, (0, start, count)) for start, count in zip(starts, counts, strict=True)]
        if targets != slices:
            return None
        whole = self.shape_of(key)
        return key if whole is not None and whole[0] == sum(counts) else (key, (0, first, sum(counts)))

    def bias_of(self, target: Target) -> Target | None:
        """The target of the bias that belongs to a weight's ``target``, or None if the layer has none."""
        key, *rest = (target,) if isinstance(target, str) else target
        bias = key.removesuffix(".weight") + ".bias" if key.endswith(".weight") else None
        if bias is None or self.shape_of(bias) is None:
            return None
        if not rest:
            return bias
        if rest[0] is not None and rest[0][0] != 0:  # a slice of the inputs leaves the bias alone
            return None
        return (bias, *rest)

    def shape_of(self, key: str) -> tuple[int, ...] | None:
        """The shape of the model's parameter ``key``, or None if there is none."""
        try:
            return tuple(comfy.utils.get_attr(self.patcher.model, key).shape)
        except AttributeError:
            return None

    def mapping(self, target: Target) -> str:
        """How the model's weight follows from the one that ``target``'s layer name means (patch.py)."""
        if isinstance(target, str) or len(target) < 3:
            return PLAIN
        return INVOLUTION if target[2] is comfy.utils.swap_scale_shift else FUNCTION

    def changed_before(self, target: Target) -> bool:
        """Whether the patcher holds a patch of ``target``, or of rows that it shares, already."""
        key, own = (target, None) if isinstance(target, str) else target[:2]
        held = self.patcher.patches.get(key, ())
        return any(strength != 0.0 and _overlap(own, offset) for strength, _, _, offset, _ in held)

    def base_weight(self, target: Target) -> Any:
        """The unpatched weight of ``target`` as the layer was trained, in float32, where ComfyUI computes."""
        key = target if isinstance(target, str) else target[0]
        weight, convert = self.patcher.get_key_patches(key)[key][0]
        device = comfy.model_management.get_torch_device()
        weight = convert(weight.to(device, copy=True), inplace=True).float()
        if isinstance(target, str):
            return weight
        if target[1] is not None:
            weight = weight.narrow(*target[1])
        return target[2](weight) if self.mapping(target) == INVOLUTION else weight

    def shape(self, target: Target) -> tuple[int, ...] | None:
        """The shape of the (slice of a) parameter that ``target`` names, or None if there is none."""
        if isinstance(target, str):
            return self.shape_of(target)
        shape = self.shape_of(target[0])
        if shape is None or target[1] is None:
            return shape
        dim, start, length = target[1]
        if dim >= len(shape) or start + length > shape[dim]:
            return None
        return (*shape[:dim], length, *shape[dim + 1 :])


def _overlap(one: tuple[int, int, int] | None, other: tuple[int, int, int] | None) -> bool:
    """Whether two slices (dim, start, length) of a parameter share a number; None is all of it."""
    if one is None or other is None or one[0] != other[0]:
        return True
    return one[1] < other[1] + other[2] and other[1] < one[1] + one[2]


def model_targets(model: Any) -> Targets:
    """What the diffusion model of a MODEL answers to."""
    inner = model.model
    shapes = {
        key.removeprefix(_MODEL): tuple(value.shape)
        for key, value in inner.state_dict().items()
        if key.startswith(_MODEL) and not key.endswith(".bias")
    }
    index = NameIndex()
    for key in shapes:
        index.add(parameter_path(key), _MODEL + key)
    core: dict[str, Target] = comfy.lora.model_lora_keys_unet(inner, {})
    for name, target in core.items():
        for path in model_paths(name):
            index.add(path, target)
    for name, located in names_in(shapes):
        index.add(name, _target(located))
    config = getattr(inner, "model_config", None)
    return Targets(type(config or inner).__name__, index, model, model_paths)


def clip_targets(clip: Any) -> Targets:
    """What the text encoders of a CLIP answer to."""
    inner = clip.cond_stage_model
    index = NameIndex()
    core: dict[str, Target] = comfy.lora.model_lora_keys_clip(inner, {})
    for name, target in core.items():
        index.add(name, target)
    encoders: dict[str, None] = {}
    for key in inner.state_dict():
        if not key.endswith(".bias"):
            for path in encoder_paths(key):
                index.add(path, key)
            encoders.update(dict.fromkeys(filter(None, [encoder_of(key)])))
    what = f"text encoder {type(inner).__name__}"
    return Targets(what, index, clip.patcher, text_paths, tuple(encoders))


def _target(located: Located) -> Target:
    key = _MODEL + located.key
    rows = None if located.rows is None else (0, *located.rows)
    if located.swapped:
        return (key, rows, comfy.utils.swap_scale_shift)
    return key if rows is None else (key, rows)
