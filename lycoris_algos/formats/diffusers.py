"""diffusers, and SimpleTuner's and ai-toolkit's files in its form: ``transformer.…``, ``unet.…``, dotted.

Text encoders are ``text_encoder.``, ``text_encoder_2.`` … in the order of the pipeline. A LoRA is ``lora_A``
and ``lora_B``; its alpha is in the metadata, if anywhere. Older versions wrote ``.lora.down``, or put
adapters on attention processors: ``….processor.to_q_lora.down.weight`` for what is now ``….to_q``.
"""

from __future__ import annotations

from ._base import PEFT_SUFFIXES, Dialect

DIALECT = Dialect(
    name="diffusers",
    title="diffusers",
    model_prefixes=("transformer.", "unet.", "prior."),
    text_prefixes=dict.fromkeys(
        ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "text_encoder_4."), ""
    ),
    suffixes=PEFT_SUFFIXES,
)
