"""The input ``multipliers`` that nodes share, and the user's own named lists of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ...lycoris_algos.io import read_presets
from ...lycoris_algos.network import Multipliers, Stack
from .compat import socket

#: The text file in ComfyUI's user folder: a line ``NAME: rules`` for each.
PRESETS = "lycoris_multipliers.txt"


def multipliers_input(what: str) -> Any:
    """Rules for blocks and kinds of layers; always the last of the optional inputs."""
    return socket(
        io.String,
        "multipliers",
        default="",
        optional=True,
        tooltip=f"Multipliers of {what} block by block, such as double.0-9=0.5, attn.k=0, te=0: the last "
        "rule that fits a layer counts, on top of the strength. Lists of 12, 17, 20, 26, 57 or 58 numbers "
        "are read as other programs write them. "
        f"Names come from {PRESETS} in the user folder. Empty changes nothing.",
    )


def with_multipliers(stack: Stack, text: str | None) -> Stack:
    """``stack`` with the rules in ``text`` on top. Raises BadValueError for what is no rule."""
    if not text or not text.strip():
        return stack
    multipliers = Multipliers.parse(text, read_presets(_presets_file()))
    return tuple(entry.with_multipliers(multipliers) for entry in stack)


def multipliers_fingerprint(text: str | None) -> str:
    """Changes when the user's lists do, where ``text`` may name one of them."""
    if not text or not text.strip():
        return ""
    try:
        status = _presets_file().stat()
    except OSError:
        return "no presets"
    return f"{status.st_mtime_ns} {status.st_size}"


def _presets_file() -> Path:
    return Path(folder_paths.get_user_directory()) / PRESETS
