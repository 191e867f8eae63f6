"""OneTrainer's own form: ``lora_transformer_…``, diffusers' paths flattened with underscores.

Its text encoders are ``lora_te1_`` … in the order of the pipeline, as in kohya's dialect, and so are its
UNets. Its other output styles are kohya's, diffusers', ComfyUI's and the bare one. Older versions also wrote
"OMI" files, with the original names of a model and ``.0``, ``.1`` … for the parts of a fused layer.
"""

from __future__ import annotations

from ._base import Dialect

DIALECT = Dialect(
    name="onetrainer",
    title="OneTrainer",
    model_prefixes=("lora_transformer_",),
    text_prefixes={"clip_l.": "clip_l.", "clip_g.": "clip_g.", "t5.": "t5xxl."},
)
