"""An adapter set out of two models: of files, which are not loaded, or of models as they are patched."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import comfy.model_management

from ...lycoris_algos import CancelledError
from ...lycoris_algos.extract import ExtractOptions, plan_extract, run_extract
from ...lycoris_algos.model_files import BaseFile, IndexedModel, Spot
from ...lycoris_algos.network import Stack, StackEntry
from .baking import base_path
from .combining import HostModel
from .keymap import Targets
from .progress import check_cancel, progress_bar, stop_if_cancelled


class PatchedModel(HostModel):
    """A MODEL and a CLIP (or None) with all patches that they carry; one weight is patched at a time."""

    def __init__(self, model: Any, clip: Any) -> None:
        super().__init__(model, clip, ())

    def read(self, half: Targets, spot: Spot) -> Any:
        return half.patched_weight(spot)

    def unusable(self, spot: Spot) -> str:
        halves = (self.index.model, self.index.text)
        is_buffer = any(half is not None and spot.key in half.buffers for half in halves)
        return "buffers, which ComfyUI does not patch" if is_buffer else ""


def extract_files(
    base: str, tuned: str, options: ExtractOptions, node_id: str | None = None
) -> tuple[Stack, str]:
    """(a stack of one, the report) of two files as the nodes list them.

    Raises as the library does, and what ComfyUI does on a stop.
    """
    with BaseFile(base_path(base)) as first, BaseFile(base_path(tuned)) as second:
        name = f"{PurePath(tuned).stem} minus {PurePath(base).stem}"
        return _extracted(first, second, options, (base, tuned), name, node_id)


def extract_models(
    base: tuple[Any, Any], tuned: tuple[Any, Any], options: ExtractOptions, node_id: str | None = None
) -> tuple[Stack, str]:
    """The same of two (MODEL, CLIP or None)."""
    first, second = PatchedModel(*base), PatchedModel(*tuned)
    return _extracted(first, second, options, ("base_model", "tuned_model"), "extracted", node_id)


def _extracted(
    base: IndexedModel[Any],
    tuned: IndexedModel[Any],
    options: ExtractOptions,
    names: tuple[str, str],
    name: str,
    node_id: str | None,
) -> tuple[Stack, str]:
    plan = plan_extract(base, tuned, options, names)
    device = comfy.model_management.get_torch_device()
    try:
        extracted = run_extract(plan, device, progress_bar(plan.steps, node_id), check_cancel, name[:120])
    except CancelledError:
        stop_if_cancelled()
        raise
    return (StackEntry(extracted.adapters),), extracted.report()
