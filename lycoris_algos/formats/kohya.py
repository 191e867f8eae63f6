"""kohya sd-scripts, musubi-tuner and LyCORIS running in them: ``lora_unet_…``, ``lora_te…_…``.

Paths are flattened with underscores: diffusers' names for SD1 and SD2, the model's own for everything newer.
``lora_te_`` is the only text encoder, ``lora_te1_`` … are numbered ones; kohya numbers by kind (Flux' T5 is
``lora_te3_``), LyCORIS by position (it is ``lora_te2_``). Stable Cascade says ``lora_prior_unet_`` and
``lora_prior_te_``. VideoX-Fun writes ``lora_unet__`` with two underscores.
"""

from __future__ import annotations

from ._base import Dialect

DIALECT = Dialect(
    name="kohya",
    title="kohya",
    model_prefixes=("lora_unet__", "lora_unet_", "lora_prior_unet_"),
    text_prefixes=dict.fromkeys(
        ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_te4_", "lora_prior_te_"), ""
    ),
)
