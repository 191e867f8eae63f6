"""PEFT's own files: ``base_model.model.…``, dotted paths inside the wrapped model.

Alpha and ranks are in ``adapter_config.json`` or the metadata. No prefix says which component of a pipeline
was wrapped (some paths do), except in the old training scripts that put ``unet.`` or ``text_encoder.`` before
it.
"""

from __future__ import annotations

from ._base import PEFT_SUFFIXES, Dialect

DIALECT = Dialect(
    name="peft",
    title="PEFT",
    model_prefixes=("base_model.model.",),
    any_component=True,
    suffixes=PEFT_SUFFIXES,
)
