"""Which weight a layer name of a file means in a loaded model.

ComfyUI knows the names of every family it supports, so its own key maps are asked, never copied. What they
leave out is added by indexing the model's own keys:

- every parameter of the diffusion model under kohya's and the LYCORIS wrapper's flat names (core gives the
  wrapper's only to some families, and kohya's to ``.weight`` only);
- every parameter of a text encoder (core knows attention and MLP, not norms, embeddings and projections).
  Which encoder ``lora_te1_`` means is read off the names that core does give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils

from .patch import FUNCTION, INVOLUTION, PLAIN

#: A weight's key, or (key, (dim, start, length)) for a slice, or (key, slice or None, function).
Target = str | tuple[Any, ...]

_MODEL = "diffusion_model."
_TEXT_PREFIX = re.compile(r"lora_(?:prior_)?te\d*_")


@dataclass(frozen=True)
class Targets:
    """The layer names that a model answers to. ``what`` names the model for people."""

    what: str
    names: Mapping[str, Target]
    patcher: Any

    def find(self, layer: str) -> Target | None:
        """The target of ``layer``'s weight, or None."""
        return self.names.get(layer)

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
        dim, _, length = target[1]
        return (*shape[:dim], length, *shape[dim + 1 :])


def model_targets(model: Any) -> Targets:
    """What the diffusion model of a MODEL answers to."""
    inner = model.model
    names: dict[str, Target] = {}
    for key in inner.state_dict():
        if key.startswith(_MODEL) and not key.endswith(".bias"):
            flat = _flat(key.removeprefix(_MODEL))
            names[f"lora_unet_{flat}"] = names[f"lycoris_{flat}"] = key
    names.update(comfy.lora.model_lora_keys_unet(inner, {}))
    config = getattr(inner, "model_config", None)
    return Targets(type(config or inner).__name__, names, model)


def clip_targets(clip: Any) -> Targets:
    """What the text encoders of a CLIP answer to."""
    inner = clip.cond_stage_model
    core: dict[str, Target] = comfy.lora.model_lora_keys_clip(inner, {})
    keys = [key for key in inner.state_dict() if not key.endswith(".bias")]
    names: dict[str, Target] = {}
    for prefix, encoder in _text_encoders(core):
        for key in keys:
            if key.startswith(encoder):
                names[prefix + _flat(key.removeprefix(encoder))] = key
    names.update(core)
    return Targets(f"text encoder {type(inner).__name__}", names, clip.patcher)


def _text_encoders(names: Mapping[str, Target]) -> Iterable[tuple[str, str]]:
    """(prefix of flat names, prefix of the model's keys) of every encoder that core names."""
    found: dict[tuple[str, str], None] = {}
    for name, key in names.items():
        match = _TEXT_PREFIX.match(name)
        if match is None or not isinstance(key, str):
            continue
        path, flat = name[match.end() :], _flat(key)
        if flat.endswith(path):  # flattening keeps the length, so the cut is the same in both spellings
            found[match.group(), key[: len(flat) - len(path)]] = None
    return found


def _flat(key: str) -> str:
    return key.removesuffix(".weight").replace(".", "_")
