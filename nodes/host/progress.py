"""Long work in ComfyUI: a progress bar with words, and the user's wish to stop."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils

from ...lycoris_algos.text import single_line


def progress_bar(total: int, node_id: str | None = None) -> Callable[[int, int, str], None]:
    """A ``progress`` callback for library work of ``total`` steps; with ``node_id`` it also names them."""
    bar = comfy.utils.ProgressBar(total)

    def step(done: int, of: int, what: str) -> None:
        bar.update_absolute(done, of)
        if node_id is not None:  # the page puts this into HTML, and names are strangers'
            _say(f"{min(done + 1, of)} of {of}: {single_line(what)}", node_id)

    return step


def check_cancel() -> bool:
    """Whether the user pressed stop. Raise through ``stop_if_cancelled`` once the work has cleaned up."""
    return bool(comfy.model_management.processing_interrupted())


def stop_if_cancelled() -> None:
    """Ends the run the way ComfyUI expects, if the user pressed stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def _say(text: str, node_id: str) -> None:
    from server import PromptServer

    instance = getattr(PromptServer, "instance", None)  # there is none in tests and scripts
    if instance is not None:
        instance.send_progress_text(text, node_id)
