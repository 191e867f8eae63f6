"""What each dialect calls a place of a model: the inverse of looking a name up. Strings only.

A layer of a diffusion model has a path in ComfyUI's module and, in most models, another in diffusers'. kohya
flattens ComfyUI's, but for the UNets of Stable Diffusion 1 and 2, which it knows as diffusers does. Text
encoders have the paths of the transformers library everywhere; dialects count them differently: kohya by
kind, diffusers by their place in the pipeline, which is ComfyUI's order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .names import flattened
from .text_encoders import encoder_and_path

# kohya's numbers of the encoders that it trains.
_NUMBERS = {"clip_l": 1, "clip_h": 1, "clip_g": 2, "t5xxl": 3}
_DIFFUSERS = re.compile(r"(?:unet|transformer)\.")
# Language models have one more module around their layers in some versions of transformers than in others.
_LANGUAGE_MODEL = "model."


def model_name(dialect: str, own: str | None, diffusers: str | None, *, as_diffusers: bool) -> str | None:
    """The layer of a diffusion model in ``dialect``; None if that has no name for it, or none that is known.

    ``own`` is its path in ComfyUI's module, ``diffusers`` its whole name there. ``as_diffusers``: kohya takes
    diffusers' paths for this model.
    """
    path = None if diffusers is None else _DIFFUSERS.sub("", diffusers, count=1)
    if dialect == "kohya":
        known = (path if as_diffusers else None) or own
        return None if known is None else f"lora_unet_{flattened(known)}"
    if dialect == "comfy":
        return None if own is None else f"diffusion_model.{own}"
    if dialect == "peft":
        return None if path is None else f"base_model.model.{path}"
    return diffusers if dialect == "diffusers" else None


def text_name(dialect: str, own: str | None, encoders: Sequence[str]) -> str | None:
    """The layer of a text encoder in ``dialect``, or None as for ``model_name``.

    ``own`` is its path in ComfyUI's module of the model's text encoders, which ``encoders`` names in order.
    """
    inside = encoder_and_path(own or "")
    if inside is None:
        return None
    if dialect == "comfy":
        return f"text_encoders.{own}"
    encoder, path = inside[0], inside[1].removeprefix("bert.")
    if path.startswith(_LANGUAGE_MODEL):
        return None
    number = encoders.index(encoder) + 1
    if dialect == "kohya":
        if len(encoders) == 1:
            digit = "" if encoder.startswith("clip_") else "1"
        else:
            digit = str(_NUMBERS.get(encoder, number))
        return f"lora_te{digit}_{flattened(path)}"
    if dialect == "diffusers":
        return f"text_encoder{'' if number == 1 else f'_{number}'}.{path}"
    return f"base_model.model.{path}" if dialect == "peft" else None
