"""HCP-Diffusion: diffusers' dotted paths, and ``___`` where the plugin begins.

The model and the text encoder are trained into separate files. Their table of tables is flattened with ``.``
out of a .ckpt file and with ``:`` in a .safetensors one: ``lora`` holds HCP's own LoRA, ``plugin`` LyCORIS
modules. HCP's LoRA stores as alpha what others call alpha/rank, hence A1111's suffix ``scale``. ``lora_ema``
and ``base`` beside them hold a moving average and whole weights; those are not used.
"""

from __future__ import annotations

from ._base import Dialect

#: Between the path of a module and what a plugin calls its tensors.
JOINT = "___."

_TABLES = ("lora:", "lora.", "plugin:", "plugin.")
# The only encoder; CLIP-L and CLIP-bigG of SDXL, which wraps both in one module.
_ENCODERS = {"text_model.": "text_model.", "clip_B.": "clip_l.", "clip_bigG.": "clip_g."}


class HcpDialect(Dialect):
    """HCP's spelling: suffixes follow ``___.``, and those of its own LoRA have names of their own."""

    def render(self, layer: str, suffix: str) -> str:
        if not layer.startswith("lora"):
            return f"{layer}.{JOINT}{suffix}"
        if suffix == "alpha":  # by which HCP's own LoRA means another number
            return f"{layer}.{suffix}"
        return f"{layer}.{JOINT}{self.suffixes.get(suffix, suffix)}"


DIALECT = HcpDialect(
    name="hcp",
    title="HCP-Diffusion",
    model_prefixes=_TABLES,
    text_prefixes={table + name: own for table in _TABLES for name, own in _ENCODERS.items()},
    any_component=True,
    suffixes={"lora_up.weight": "layer.W_up", "lora_down.weight": "layer.W_down", "scale": "alpha"},
)
