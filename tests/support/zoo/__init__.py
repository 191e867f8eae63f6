"""A tiny model of every family that ComfyUI knows, with random values: real classes, small numbers.

The lab's models (``lab.models``) are files that stock loaders accept; these need not be, so that families
whose loaders insist on full width are here too. A family that the host does not have is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from lab.arguments import called

from ._diffusion import OLDER
from ._encoders import ENCODERS, encoder, has_encoder
from ._newer import NEWER

__all__ = ["ENCODERS", "MODELS", "clip", "has", "has_encoder", "model", "new_clip", "new_model"]

#: Name: (class of ``comfy.supported_models``, configuration).
MODELS = {**OLDER, **NEWER}


def has(name: str) -> bool:
    """Whether the host has the family of ``name``, one of ``MODELS``."""
    import comfy.supported_models

    return hasattr(comfy.supported_models, MODELS[name][0])


def model(name: str, device: str = "cpu") -> Any:
    """A MODEL of one of ``MODELS``."""
    family, config = MODELS[name]
    return new_model(family, config, device)


def new_model(family: str, config: dict[str, Any], device: str = "cpu") -> Any:
    """A MODEL of a class of ``comfy.supported_models``; on the meta device it has no values."""
    import comfy.supported_models

    made = getattr(comfy.supported_models, family)

    def make(arguments: dict[str, Any]) -> Any:
        settings = made({**made.unet_config, "dtype": torch.float32, **arguments})
        settings.unet_config.update(arguments)  # the class has some numbers of its own
        return settings.get_model(_conditioners() if family == "StableAudio" else {}, "", device=device)

    return _patcher(_filled(called(make, config)))


def _conditioners() -> dict[str, torch.Tensor]:
    """The weights that Stable Audio is made of: what embeds its two numbers."""
    from comfy.ldm.audio.embedders import NumberConditioner

    return {
        f"conditioner.conditioners.seconds_{number}.{key}": value
        for number in ("start", "total")
        for key, value in NumberConditioner(768).state_dict().items()
    }


def clip(name: str) -> Any:
    """A CLIP with one of ``ENCODERS``."""
    return new_clip(encoder(name))


def new_clip(stage: Any) -> Any:
    """A CLIP around ComfyUI's module ``stage`` of text encoders."""
    import comfy.sd

    made = comfy.sd.CLIP(no_init=True)
    made.cond_stage_model = _filled(stage)
    made.patcher = _patcher(made.cond_stage_model)
    made.tokenizer = made.layer_idx = None
    made.tokenizer_options = {}
    made.use_clip_schedule = made.apply_hooks_to_conds = False
    return made


def _filled(module: Any) -> Any:
    """``module`` with random values, which ComfyUI's classes leave to the loader."""
    generator = torch.Generator().manual_seed(7)
    with torch.inference_mode():
        for value in (*module.parameters(), *module.buffers()):
            if value.device.type != "meta" and value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    return module


def _patcher(module: Any) -> Any:
    import comfy.model_patcher

    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(module, load_device=cpu, offload_device=cpu)
