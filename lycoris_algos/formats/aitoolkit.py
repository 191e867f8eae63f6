"""ai-toolkit: ComfyUI's names with PEFT's tensors, and no alpha, which is then the rank.

A file is told from ComfyUI's own by how its tensors are called; both are looked up the same way. OneTrainer's
style for ComfyUI is spelled so too, but keeps alpha.
"""

from __future__ import annotations

from ._base import PEFT_SUFFIXES, Dialect

DIALECT = Dialect(
    name="aitoolkit",
    title="ai-toolkit",
    model_prefixes=("diffusion_model.",),
    suffixes={**PEFT_SUFFIXES, "lora_magnitude_vector": "magnitude"},
    signatures=("software",),
)
