"""A LYCORIS stack into one adapter set, and that into a file, with what only a loaded model knows.

The model gives three things: base weights for changes that depend on them, which layer names of different
dialects mean the same, and how another dialect spells a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management

from ...lycoris_algos import AdapterSet, BadValueError, CancelledError, convert, load, save
from ...lycoris_algos.formats import dialect_of
from ...lycoris_algos.inspection import algorithm_lines, unread_lines
from ...lycoris_algos.merge.combine import CombineOptions, plan_combine, run_combine
from ...lycoris_algos.model_files import BaseFile, IndexedModel, KnownModel, Spot
from ...lycoris_algos.network import Stack, StackEntry
from ...lycoris_algos.ops.dtypes import STORED_DTYPES
from ...lycoris_algos.text import as_report, listed, quoted, single_line
from .baking import base_path
from .keymap import Targets, known_layers
from .progress import check_cancel, progress_bar, stop_if_cancelled
from .saving import folder_of

#: The dialects that a file can be saved in, as the node calls them.
DIALECT_CHOICES = {"as stored": None, "kohya": "kohya", "ComfyUI": "comfy", "diffusers-PEFT": "diffusers"}
AS_STORED = "as stored"
#: The choice of no base model file.
NO_BASE = "none"


class HostModel(IndexedModel[Targets]):
    """What a MODEL and a CLIP (either may be None) say about layers. ``sets`` are as for ``IndexedModel``."""

    def __init__(self, model: Any, clip: Any, sets: Sequence[AdapterSet]) -> None:
        super().__init__(known_layers(model, clip), sets)

    def read(self, half: Targets, spot: Spot) -> Any:
        return half.base_weight(spot)

    def stored_dtype(self, half: Targets, spot: Spot) -> Any:
        return half.stored_dtype(spot)

    def record(self) -> Mapping[str, object]:
        """See ``KnownModel``. A loaded model does not say which file it came from."""
        wired = (("model", self.index.model), ("clip", self.index.text))
        return {name: targets.what for name, targets in wired if targets is not None}


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
    with BaseFile(base_path(base), sets) as file:
        return _combined(stack, options, file, node_id)


def _combined(
    stack: Stack, options: CombineOptions, known: KnownModel | None, node_id: str | None
) -> tuple[Stack, str]:
    plan = plan_combine(stack, options, known)
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
            f"a file holds one adapter set, and this stack has {len(stack)}: "
            "put CombineLyCORIS before it to make one of them"
        )
    (entry,) = stack
    known = HostModel(model, clip, [entry.adapters]) if model is not None or clip is not None else None
    converted = convert(
        entry.adapters,
        dtype=None if dtype == AS_STORED else STORED_DTYPES[dtype],
        dialect=DIALECT_CHOICES[dialect],
        strength_model=entry.strength_model,
        strength_clip=entry.strength_clip,
        multipliers=entry.multipliers,
        known=known,
        title=path.stem,
        embeddings=include_embeddings,
    )
    with folder_of(path):
        written = save(converted, path)
    back = load(written)
    if back.keys() != converted.keys():
        raise BadValueError(
            f"{quoted(written.name)} was written, but reads back with other layers: please report this"
        )
    carried = [item for item in converted.unmatched if item.key in converted.unread]
    folded = (entry.strength_model, entry.strength_clip, entry.multipliers) != (1.0, 1.0, ())
    lines = [
        f"written: {single_line(str(written), 400)} ({written.stat().st_size / 1e6:.2f} MB)",
        *(f"  {line}" for line in algorithm_lines(converted.values())),
        f"  {len(converted)} layers, stored as {dtype}, spelled as {_spelling(converted)}, read back",
    ]
    lines += [f"  {line}" for line in unread_lines(converted.name, carried, "written as they were")]
    lines += [f"  {note}" for note in converted.notes[len(entry.adapters.notes) :]]
    if folded:
        lines.append(f"  the strength is in the file, so apply it at 1: {entry}")
    if entry.adapters.embeddings:
        words = listed(entry.adapters.embeddings, show=quoted)
        lines.append(f"  embeddings {'included' if converted.embeddings else 'left out'}: {words}")
    return written, as_report(lines)


def _spelling(adapters: AdapterSet) -> str:
    spoken = sorted({dialect_of(layer).name for layer in adapters})
    return adapters.dialect if len(spoken) == 1 else f"a mixture of {', '.join(spoken)}"
