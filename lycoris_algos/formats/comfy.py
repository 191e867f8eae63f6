"""ComfyUI's generic names: the model's own dotted paths after ``diffusion_model.`` or ``text_encoders.``."""

from __future__ import annotations

from ._base import Dialect

DIALECT = Dialect(
    name="comfy",
    title="ComfyUI",
    model_prefixes=("diffusion_model.",),
    text_prefixes=("text_encoders.",),
)
