"""A LYCORIS stack into one adapter set, and that into a file, with what only a loaded model knows.

The model gives three things: base weights for changes that depend on them, which layer names of different
dialects mean the same, and how another dialect spells a layer.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management

from ...lycoris_algos import BadValueError, CancelledError, convert, load, save
from ...lycoris_algos.formats import is_text_layer
from ...lycoris_algos.inspection import algorithm_lines
from ...lycoris_algos.merge.combine import CombineOptions, Source, plan_combine, run_combine
from ...lycoris_algos.ops.dtypes import STORED_DTYPES
from .keymap import Target, Targets, clip_targets, model_targets
from .patch import FUNCTION
from .progress import check_cancel, progress_bar, stop_if_cancelled
from .stack import Stack, StackEntry

#: The dialects that a file can be saved in, as the node calls them.
DIALECT_CHOICES = {"as stored": None, "kohya": "kohya", "ComfyUI": "comfy", "diffusers-PEFT": "diffusers"}
AS_STORED = "as stored"
_TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "text_encoder_4.")


class HostModel:
    """What a MODEL and a CLIP (either may be None) say about layers; the library's ``BaseWeights``."""

    def __init__(self, model: Any, clip: Any) -> None:
        self._model = model_targets(model) if model is not None else None
        self._clip = clip_targets(clip) if clip is not None else None

    def shape(self, layer: str, what: str) -> tuple[int, ...] | None:
        """See ``BaseWeights``."""
        found = self._find(layer, what)
        if found is None or found[0].mapping(found[1]) == FUNCTION:
            return None
        return found[0].shape(found[1])

    def fetch(self, layer: str, what: str) -> Any:
        """See ``BaseWeights``."""
        found = self._find(layer, what)
        assert found is not None  # asked only where `shape` answered
        return found[0].base_weight(found[1])

    def same_layer(self, layer: str) -> Hashable | None:
        """What ``layer`` means in the model, in terms that can be compared."""
        found = self._find(layer, "weight")
        return None if found is None else (found[0].what, found[1])

    def rename(self, layer: str, dialect: str) -> str | None:
        """``layer`` as ``dialect`` spells it, for a layer that is a whole parameter of the model."""
        found = self._find(layer, "weight")
        if found is None or not isinstance(found[1], str):
            return None
        targets, key = found
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

    def _find(self, layer: str, what: str) -> tuple[Targets, Target] | None:
        targets = self._clip if is_text_layer(layer) else self._model
        target = targets.find(layer) if targets is not None else None
        if targets is None or target is None:
            return None
        if what == "bias":
            target = targets.bias_of(target)
        return None if target is None else (targets, target)


def _projection(name: str) -> str:
    """Today's name of a projection that core calls by the attention processor which once wrapped it."""
    plain = name.replace(".processor.", ".")
    return f"{plain}.0" if plain != name and plain.endswith(".to_out") else plain


def _clip_names(targets: Targets) -> dict[str, Target]:
    names: dict[str, Target] = comfy.lora.model_lora_keys_clip(targets.patcher.model, {})
    return names


def combine_stack(
    stack: Stack, options: CombineOptions, model: Any, clip: Any, node_id: str | None = None
) -> tuple[Stack, str]:
    """(a stack of one, the report). Raises as the library does, and what ComfyUI does on a stop."""
    if stack and not any(e.strength_model or e.strength_clip for e in stack):
        # Nothing is asked for and nothing comes out. No error, so that strengths can be turned down.
        return (StackEntry(stack[0].adapters, 0.0, 0.0),), "every strength is 0: the result changes nothing"
    known = HostModel(model, clip) if model is not None or clip is not None else None
    sources = [Source(e.adapters, e.strength_model, e.strength_clip) for e in stack]
    plan = plan_combine(sources, options, known, None if known is None else known.same_layer)
    device = comfy.model_management.get_torch_device()
    name = f"{options.method.value} of {', '.join(e.adapters.name for e in stack)}"
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
    known = HostModel(model, clip) if model is not None or clip is not None else None
    converted = convert(
        entry.adapters,
        dtype=None if dtype == AS_STORED else STORED_DTYPES[dtype],
        dialect=DIALECT_CHOICES[dialect],
        strength_model=entry.strength_model,
        strength_clip=entry.strength_clip,
        rename=None if known is None else known.rename,
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
            f"  strength {entry.strength_model:g} (clip {entry.strength_clip:g}) is in the file: apply it "
            "at 1"
        )
    if entry.adapters.embeddings:
        words = ", ".join(f"'{word}'" for word in entry.adapters.embeddings)
        lines.append(f"  embeddings {'included' if include_embeddings else 'left out'}: {words}")
    return written, "\n".join(lines)
