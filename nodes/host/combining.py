"""A LYCORIS stack into one adapter set, and that into a file, with what only a loaded model knows.

The model gives three things: base weights for changes that depend on them, which layer names of different
dialects mean the same, and how another dialect spells a layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management

from ...lycoris_algos import (
    AdapterSet,
    BadValueError,
    CancelledError,
    LayerAdapter,
    ShapeMismatchError,
    convert,
    load,
    save,
)
from ...lycoris_algos.formats import is_text_layer
from ...lycoris_algos.inspection import algorithm_lines
from ...lycoris_algos.merge.combine import (
    CheckpointWeights,
    CombineOptions,
    plan_combine,
    run_combine,
)
from ...lycoris_algos.network import Stack, StackEntry
from ...lycoris_algos.ops.dtypes import STORED_DTYPES
from ...lycoris_algos.ops.rows import stacked
from .baking import base_path
from .keymap import Place, Targets, clip_targets, model_targets
from .names import Target
from .patch import FUNCTION
from .progress import check_cancel, progress_bar, stop_if_cancelled

#: The dialects that a file can be saved in, as the node calls them.
DIALECT_CHOICES = {"as stored": None, "kohya": "kohya", "ComfyUI": "comfy", "diffusers-PEFT": "diffusers"}
AS_STORED = "as stored"
#: The choice of no base model file.
NO_BASE = "none"
_TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "text_encoder_4.")


class HostModel:
    """What a MODEL and a CLIP (either may be None) say about layers; the library's ``BaseWeights``.

    ``sets`` are the adapters it will be asked about: a name that has several meanings means what they fit.
    """

    def __init__(self, model: Any, clip: Any, sets: Sequence[AdapterSet]) -> None:
        self._model = model_targets(model) if model is not None else None
        self._clip = clip_targets(clip) if clip is not None else None
        self._sets = sets
        self._known: dict[str, tuple[Targets, tuple[Place, ...]] | None] = {}

    def shape(self, layer: str, what: str) -> tuple[int, ...] | None:
        """See ``BaseWeights``."""
        found = self._find(layer)
        if found is None:
            return None
        targets, places = found
        own = self._parameters(targets, places, what)
        if own is None or any(targets.mapping(target) == FUNCTION for target in own):
            return None
        return _stacked_shape([targets.shape(target) for target in own])

    def fetch(self, layer: str, what: str) -> Any:
        """See ``BaseWeights``."""
        found = self._find(layer)
        assert found is not None  # asked only where `shape` answered
        own = self._parameters(*found, what)
        assert own is not None
        return stacked([found[0].base_weight(target) for target in own])

    def record(self) -> Mapping[str, object]:
        """See ``BaseWeights``. A loaded model does not say which file it came from."""
        wired = (("model", self._model), ("clip", self._clip))
        return {name: targets.what for name, targets in wired if targets is not None}

    def same_layer(self, layer: str) -> Hashable | None:
        """What ``layer`` means in the model, in terms that can be compared."""
        found = self._find(layer)
        return None if found is None else (found[0].what, found[1])

    def is_text(self, layer: str) -> bool:
        """Whether ``layer`` is one of the CLIP: by what it means there or in the model, else by its name."""
        found = self._find(layer)
        return is_text_layer(layer) if found is None else found[0] is self._clip

    def rename(self, layer: str, dialect: str) -> str | None:
        """``layer`` as ``dialect`` spells it, for a layer that is a whole parameter of the model."""
        found = self._find(layer)
        if found is None or len(found[1]) != 1 or not isinstance(found[1][0].target, str):
            return None
        targets, key = found[0], found[1][0].target
        path = key.removesuffix(".weight")
        if targets is self._clip:
            if dialect == "comfy":
                return f"text_encoders.{path}"
            names = _clip_names(targets)
            wanted = ("lora_te",) if dialect == "kohya" else _TEXT_ENCODERS
        else:
            if dialect == "comfy":
                return path
            if dialect == "kohya":
                return f"lora_unet_{path.removeprefix('diffusion_model.').replace('.', '_')}"
            names = comfy.lora.model_lora_keys_unet(targets.patcher.model, {})
            wanted = ("unet.", "transformer.")
        spelled = (name for name, target in names.items() if target == key and name.startswith(wanted))
        return next((_projection(name) for name in spelled), None)

    def _find(self, layer: str) -> tuple[Targets, tuple[Place, ...]] | None:
        if layer not in self._known:
            self._known[layer] = self._meaning(layer)
        return self._known[layer]

    def _meaning(self, layer: str) -> tuple[Targets, tuple[Place, ...]] | None:
        """The first meaning that the adapters of this name fit; text encoders first for their layers."""
        adapters = [own[layer] for own in self._sets if layer in own]
        order = (self._clip, self._model) if is_text_layer(layer) else (self._model, self._clip)
        for targets in order:
            for places in targets.find(layer) if targets is not None else ():
                assert targets is not None
                shape = _stacked_shape([targets.shape(place.target) for place in places])
                if shape is not None and all(_fits(adapter, shape) for adapter in adapters):
                    return targets, places
        return None

    def _parameters(self, targets: Targets, places: Sequence[Place], what: str) -> list[Target] | None:
        """The weights or biases that ``places`` name, in the order of their rows; None if one is missing."""
        if what == "weight":
            return [place.target for place in places]
        biases = [targets.bias_of(place.target) for place in places]
        return None if None in biases else [bias for bias in biases if bias is not None]


def _fits(adapter: LayerAdapter, shape: tuple[int, ...]) -> bool:
    try:
        adapter.fits(shape)
    except ShapeMismatchError:
        return False
    return True


def _stacked_shape(shapes: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The shape of pieces laid one below the other, in the order of their rows."""
    known = [shape for shape in shapes if shape]
    if len(known) < len(shapes) or len({shape[1:] for shape in known}) != 1:
        return known[0] if len(shapes) == 1 and known else None
    return (sum(shape[0] for shape in known), *known[0][1:])


def _projection(name: str) -> str:
    """Today's name of a projection that core calls by the attention processor which once wrapped it."""
    plain = name.replace(".processor.", ".")
    return f"{plain}.0" if plain != name and plain.endswith(".to_out") else plain


def _clip_names(targets: Targets) -> dict[str, Target]:
    names: dict[str, Target] = comfy.lora.model_lora_keys_clip(targets.patcher.model, {})
    return names


def combine_stack(
    stack: Stack, options: CombineOptions, model: Any, clip: Any, base: str, node_id: str | None = None
) -> tuple[Stack, str]:
    """(a stack of one, the report). A MODEL and CLIP go before the file ``base``, where there are any.

    Raises as the library does, and what ComfyUI does on a stop.
    """
    if stack and not any(e.strength_model or e.strength_clip for e in stack):
        # Nothing is asked for and nothing comes out. No error, so that strengths can be turned down.
        return (StackEntry(stack[0].adapters, 0.0, 0.0),), "every strength is 0: the result changes nothing"
    sets = [entry.adapters for entry in stack]
    if model is not None or clip is not None:
        return _combined(stack, options, HostModel(model, clip, sets), node_id)
    if base == NO_BASE:
        return _combined(stack, options, None, node_id)
    with CheckpointWeights(base_path(base), sets) as weights:
        return _combined(stack, options, weights, node_id)


def _combined(
    stack: Stack, options: CombineOptions, known: HostModel | CheckpointWeights | None, node_id: str | None
) -> tuple[Stack, str]:
    told = () if known is None else (known, known.same_layer, known.is_text)
    plan = plan_combine(stack, options, *told)
    device = comfy.model_management.get_torch_device()
    name = f"{options.method} of {', '.join(e.adapters.name for e in stack)}"
    try:
        combined = run_combine(plan, device, progress_bar(plan.steps, node_id), check_cancel, name[:120])
    except CancelledError:
        stop_if_cancelled()
        raise
    return (StackEntry(combined.adapters),), combined.report()


def save_stack(
    stack: Stack,
    path: Path,
    dtype: str,
    dialect: str,
    include_embeddings: bool,
    model: Any = None,
    clip: Any = None,
) -> tuple[Path, str]:
    """(the file that was written, the report). Raises as ``convert`` and ``save`` do."""
    if len(stack) != 1:
        raise BadValueError(
            f"a file holds one adapter set, and this stack has {len(stack)}: put CombineLyCORIS before it to "
            "make one of them"
        )
    (entry,) = stack
    known = HostModel(model, clip, [entry.adapters]) if model is not None or clip is not None else None
    converted = convert(
        entry.adapters,
        dtype=None if dtype == AS_STORED else STORED_DTYPES[dtype],
        dialect=DIALECT_CHOICES[dialect],
        strength_model=entry.strength_model,
        strength_clip=entry.strength_clip,
        rename=None if known is None else known.rename,
        is_text=is_text_layer if known is None else known.is_text,
        title=path.stem,
        embeddings=include_embeddings,
    )
    written = save(converted, path)
    back = load(written)
    if back.keys() != converted.keys():
        raise BadValueError(
            f"'{written.name}' was written, but reads back with other layers: please report this"
        )
    folded = (entry.strength_model, entry.strength_clip) != (1.0, 1.0)
    lines = [
        f"written: {written} ({written.stat().st_size / 1e6:.2f} MB)",
        *(f"  {line}" for line in algorithm_lines(converted.values())),
        f"  {len(converted)} layers, stored as {dtype}, spelled as {converted.dialect}, read back",
    ]
    if folded:
        lines.append(
            f"  strength {entry.strength_model:g} (clip {entry.strength_clip:g}) "
            "is in the file: apply it at 1"
        )
    if entry.adapters.embeddings:
        words = ", ".join(f"'{word}'" for word in entry.adapters.embeddings)
        lines.append(f"  embeddings {'included' if include_embeddings else 'left out'}: {words}")
    return written, "\n".join(lines)
