"""Which weight a layer name of a file means in a loaded model.

ComfyUI knows the names of every family it supports, so its own key maps are asked, never copied. What they
leave out comes from the model's own keys (all of them, under every trainer's prefix; core has the LyCORIS
wrapper's for some families only, of text encoders no norms and embeddings) and from ``lycoris_algos.models``
(diffusers' names of families that core knows under one name only).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
from comfy.model_patcher import get_key_weight

from ...lycoris_algos import LayerAdapter, LycorisError
from ...lycoris_algos.formats import model_paths
from ...lycoris_algos.model_files import (
    LayerIndex,
    ModelIndex,
    NameIndex,
    Paths,
    Shape,
    Spot,
    Spots,
    UnsuitableError,
    family_spot,
    overlap,
)
from ...lycoris_algos.model_files.checkpoint import model_paths_of
from ...lycoris_algos.model_files.text_encoders import encoder_and_path, encoder_paths
from ...lycoris_algos.models import names_in
from .patch import FUNCTION, INVOLUTION, PLAIN

#: A weight's key, or (key, (dim, start, length)) for a slice, or (key, slice or None, function).
Target = str | tuple[Any, ...]

_MODEL = "diffusion_model."


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets(LayerIndex):
    """The layer names that a MODEL or a CLIP answers to. ``buffers`` are the keys that are no parameters."""

    patcher: Any
    buffers: frozenset[str]

    def check(self, adapter: LayerAdapter, spots: Spots) -> None:
        """See ``LayerIndex``. No buffer either: ComfyUI would hold a patch of it and never use it."""
        if any(spot.key in self.buffers for spot in spots):
            raise UnsuitableError(
                f"{self.what} has it as a buffer, which ComfyUI does not patch; Merge LyCORIS can change it"
            )
        super().check(adapter, spots)

    def changed_before(self, target: Target) -> bool:
        """Whether the patcher holds a patch of ``target``, or of rows that it shares, already."""
        key, own = key_and_part(target)
        held = self.patcher.patches.get(key, ())
        return any(strength != 0.0 and overlap(own, offset) for strength, _, _, offset, _ in held)

    def stored_dtype(self, spot: Spot) -> Any:
        """The number type of the parameter at ``spot``."""
        return _unpatched(self.patcher, spot.key).dtype

    def base_weight(self, spot: Spot) -> Any:
        """The unpatched weight at ``spot`` as the layer was trained, in float32, where ComfyUI computes."""
        return self._seen(self._loaded(spot.key), spot)

    def patched_weight(self, spot: Spot) -> Any:
        """The same with every patch that the patcher holds, and those of its hooks that are always on.

        Raises LycorisError where they make a weight of another size.
        """
        weight = self._loaded(spot.key)
        held = list(self.patcher.patches.get(spot.key, ()))
        if self.patcher.forced_hooks is not None:
            held += self.patcher.get_combined_hook_patches(self.patcher.forced_hooks).get(spot.key, ())
        shape = weight.shape
        weight = comfy.lora.calculate_weight(held, weight, spot.key, intermediate_dtype=weight.dtype)
        if weight.shape != shape:
            raise LycorisError("a patch of the model enlarges this weight, so it cannot be compared")
        return self._seen(weight, spot)

    def _loaded(self, key: str) -> Any:
        """A copy of the parameter ``key`` as it was loaded, in float32."""
        device = comfy.model_management.get_torch_device()
        weight = _unpatched(self.patcher, key).to(device, copy=True)
        _, _, convert = get_key_weight(self.patcher.model, key)
        return (weight if convert is None else convert(weight, inplace=True)).float()

    @staticmethod
    def _seen(weight: Any, spot: Spot) -> Any:
        if spot.part is not None:
            weight = weight.narrow(*spot.part)
        return comfy.utils.swap_scale_shift(weight) if spot.swapped else weight


def key_and_part(target: Target) -> tuple[str, tuple[int, int, int] | None]:
    """The parameter of ``target``, and its slice (dim, start, length) of it; None is all of it."""
    return (target, None) if isinstance(target, str) else (target[0], target[1])


def _unpatched(patcher: Any, key: str) -> Any:
    """The parameter as the model was loaded: not ``get_key_patches``, which takes no key but a prefix."""
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]
    if key in patcher.backup:
        return patcher.backup[key].weight
    return comfy.utils.get_attr(patcher.model, key)


def target_of(spot: Spot) -> Target:
    """``spot`` as ``ModelPatcher.add_patches`` takes it."""
    function = comfy.utils.swap_scale_shift if spot.swapped else spot.function
    if function is not None:
        return (spot.key, spot.part, function)
    return spot.key if spot.part is None else (spot.key, spot.part)


def mapping(target: Target) -> str:
    """How the model's weight follows from the one that ``target``'s layer name means (patch.py)."""
    if isinstance(target, str) or len(target) < 3:
        return PLAIN
    return INVOLUTION if target[2] is comfy.utils.swap_scale_shift else FUNCTION


def known_layers(model: Any, clip: Any) -> ModelIndex[Targets]:
    """What a MODEL and a CLIP, either of which may be None, answer to."""
    return ModelIndex(
        None if model is None else model_targets(model), None if clip is None else clip_targets(clip)
    )


def model_targets(model: Any) -> Targets:
    """What the diffusion model of a MODEL answers to."""
    inner = model.model
    stored, buffers = _stored(inner)
    inside = {key.removeprefix(_MODEL): shape for key, shape in stored.items() if key.startswith(_MODEL)}
    shapes = {key: shape for key, shape in inside.items() if not key.endswith(".bias")}
    names = NameIndex()
    for key in shapes:
        names.add(key.removesuffix(".weight"), Spot(_MODEL + key))
    core: dict[str, Target] = comfy.lora.model_lora_keys_unet(inner, {})
    for name, target in core.items():
        spot = _spot_of(target)
        for path in model_paths(name):
            names.add(path, spot)
    for name, located in names_in(shapes):
        names.add(name, family_spot(located, _MODEL))
    config = getattr(inner, "model_config", None)
    return Targets(
        what=type(config or inner).__name__,
        names=names,
        shape_of=stored.get,
        find_paths=lambda: _model_paths(core, inside),
        patcher=model,
        buffers=buffers,
    )


def clip_targets(clip: Any) -> Targets:
    """What the text encoders of a CLIP answer to."""
    inner = clip.cond_stage_model
    names = NameIndex()
    core: dict[str, Target] = comfy.lora.model_lora_keys_clip(inner, {})
    for name, target in core.items():
        names.add(name, _spot_of(target))
    stored, buffers = _stored(inner)
    keys = [key for key in stored if not key.endswith(".bias")]
    encoders: dict[str, str] = {}
    for key in keys:
        path, spot = key.removesuffix(".weight"), Spot(key)
        inside = encoder_and_path(path)
        if inside is not None:
            encoders[key] = inside[0]
        for known in (path,) if inside is None else encoder_paths(*inside):
            names.add(known, spot)
    return Targets(
        what=f"text encoder {type(inner).__name__}",
        is_text=True,
        names=names,
        shape_of=stored.get,
        encoder_of=encoders,
        find_paths=lambda: Paths(own={Spot(key): key.removesuffix(".weight") for key in keys}),
        patcher=clip.patcher,
        buffers=buffers,
    )


def _stored(module: Any) -> tuple[dict[str, Shape], frozenset[str]]:
    """({key: shape} of all that ``module`` stores, the keys of it that are buffers).

    Not by its state, where quantised weights are packed and have their scales beside them.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    kept = module.state_dict()
    buffers = {key: value for key, value in module.named_buffers() if key in kept}
    shapes = {key: tuple(value.shape) for key, value in (parameters | buffers).items()}
    return shapes, frozenset(buffers)


def _spot_of(target: Target) -> Spot:
    if isinstance(target, str):
        return Spot(target)
    key, part, *function = target
    if not function:
        return Spot(key, part)
    swapped = function[0] is comfy.utils.swap_scale_shift
    return Spot(key, part, swapped=swapped, function=None if swapped else function[0])


def _model_paths(core: dict[str, Target], inside: dict[str, Shape]) -> Paths:
    """ComfyUI's and diffusers' paths; the latter as core has them for families that are unknown here.

    Core also has other programs' names under diffusers' prefix, and several for one layer.
    """
    paths = model_paths_of(inside, _MODEL)
    if paths.diffusers:
        return paths
    named = ((name, target) for name, target in core.items() if name.startswith(("unet.", "transformer.")))
    known: dict[Spot, str] = {}
    for name, target in named:
        known.setdefault(_spot_of(target), _projection(name))
    return replace(paths, diffusers=known)


def _projection(name: str) -> str:
    """Today's name of a projection that core calls by the attention processor which once wrapped it."""
    plain = name.replace(".processor.", ".")
    return f"{plain}.0" if plain != name and plain.endswith(".to_out") else plain
