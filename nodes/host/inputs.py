"""Inputs that several nodes share, so that they look and behave the same everywhere."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .compat import socket
from .paths import adapter_names


def file_input() -> Any:
    """The combo of adapter files; built each time ComfyUI asks, so that new files appear on refresh."""
    return socket(
        io.Combo,
        "lycoris_name",
        options=adapter_names(),
        tooltip="A LyCORIS or LoRA file from the folders 'loras' and 'lycoris'. Press R to refresh.",
    )


def strength_input(name: str, what: str, *, optional: bool = False) -> Any:
    """A multiplier: 1 is as trained, 0 leaves the weights bit-identical, negative reverses."""
    return socket(
        io.Float,
        name,
        default=1.0,
        min=-100.0,
        max=100.0,
        step=0.01,
        optional=optional,
        tooltip=f"How strongly {what}: 1 as trained, 0 not at all, negative the other way round.",
    )
