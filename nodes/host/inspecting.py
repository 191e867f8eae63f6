"""A LYCORIS stack looked at: its values against a MODEL and a CLIP, and the picture on the node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
from comfy_api.latest import ui

from ...lycoris_algos import CancelledError
from ...lycoris_algos.inspection import (
    ADVICE,
    Detail,
    Inspection,
    View,
    blank,
    can_draw,
    draw,
    inspect,
    text_of,
)
from ...lycoris_algos.network import Stack
from ...lycoris_algos.text import Brief
from .combining import HostModel
from .progress import check_cancel, progress_bar, stop_if_cancelled


@dataclass(frozen=True, eq=False)
class Inspected(Brief):
    """What the node gives out. ``shown`` is the picture for the page; nothing without matplotlib."""

    found: Inspection
    picture: Any
    report: str
    shown: dict[str, Any]


def inspect_stack(
    stack: Stack, view: View, detail: Detail, model: Any, clip: Any, node_id: str | None = None
) -> Inspected:
    """Looks at ``stack``; ``model`` and ``clip`` may be None. Raises what ComfyUI does on a stop."""
    known = None
    if model is not None or clip is not None:
        known = HostModel(model, clip, [entry.adapters for entry in stack])
    steps = sum(len(entry.adapters) for entry in stack)
    try:
        found = inspect(
            stack,
            view,
            known,
            comfy.model_management.get_torch_device(),
            progress_bar(steps, node_id),
            check_cancel,
        )
    except CancelledError:
        stop_if_cancelled()
        raise
    report = text_of(found, detail)
    if not can_draw():
        return Inspected(found, blank(), f"{report}\n\n{ADVICE}", {})
    picture = draw(found)
    return Inspected(found, picture, report, ui.PreviewImage(picture).as_dict())
