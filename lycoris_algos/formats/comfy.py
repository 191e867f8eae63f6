"""ComfyUI's generic names: the model's own dotted paths after ``diffusion_model.`` or ``text_encoders.``.

ai-toolkit writes most of its files so, with PEFT's ``lora_A`` and ``lora_B`` and no alpha, which is then the
rank; OneTrainer has a style for ComfyUI, with the same tensors and alpha.
"""

from __future__ import annotations

from ._base import Dialect

DIALECT = Dialect(
    name="comfy",
    title="ComfyUI",
    model_prefixes=("diffusion_model.",),
    text_prefixes={"text_encoders.": ""},
)
