"""The files that trainers write for a model: their prefixes and their spellings of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ._layers import (
    HCP,
    KOHYA,
    OLD_DIFFUSERS,
    PEFT,
    RAW_PEFT,
    File,
    Layer,
    Shapes,
    dotted,
    file,
    glued,
    named,
    native,
)
from ._names import (
    flux,
    flux_fused,
    flux_omi,
    flux_xlabs,
    hunyuan_video,
    hunyuan_video_tencent,
    processors,
    unet,
    wan,
    z_image,
)


def fused_family(diffusers: Callable[[Shapes], list[Layer]]) -> Callable[[Shapes], Iterator[File]]:
    """The usual files for a transformer that diffusers names in its own way."""

    def files(shapes: Shapes) -> Iterator[File]:
        own, other = native(shapes), diffusers(shapes)
        yield file("kohya", own, "lora_unet_", flat=True)
        yield file("LyCORIS wrapper, original names", own, "lycoris_", flat=True)
        yield file("SimpleTuner LyCORIS", other, "lycoris_", flat=True)
        yield file("OneTrainer", other, "lora_transformer_", flat=True)
        yield file("OneTrainer, ComfyUI style", own, "diffusion_model.", {**PEFT, "alpha": "alpha"})
        yield file("OneTrainer, original style", own, "", {**PEFT, "alpha": "alpha"})
        yield file("diffusers, SimpleTuner", other, "transformer.", PEFT)
        yield file("PEFT", other, "base_model.model.", PEFT)
        yield file("ai-toolkit", own, "diffusion_model.", PEFT)

    return files


def flux_files(shapes: Shapes) -> Iterator[File]:
    yield from fused_family(flux)(shapes)
    yield file("SimpleTuner LyCORIS, fused", flux_fused(shapes), "lycoris_", flat=True)
    yield file("diffusers, fused", flux_fused(shapes), "transformer.", PEFT)
    yield file("OneTrainer, OMI", flux_omi(shapes), "transformer.")
    xlabs = {layer.path: layer for layer in flux_xlabs(shapes)}
    yield File("XLabs", xlabs, lambda name, which: "" if which == "alpha" else f"{name}.{which}.weight")


def hunyuan_files(shapes: Shapes) -> Iterator[File]:
    yield from fused_family(hunyuan_video)(shapes)
    tencent = hunyuan_video_tencent(shapes)
    yield file("musubi-tuner", tencent, "lora_unet_", flat=True)
    yield file("diffusion-pipe", tencent, "transformer.", PEFT)
    yield file("OneTrainer, original style, Tencent's names", tencent, "", {**PEFT, "alpha": "alpha"})


def wan_files(shapes: Shapes) -> Iterator[File]:
    yield from fused_family(wan)(shapes)
    own = native(shapes)
    yield file("musubi-tuner", own, "lora_unet_", flat=True)
    yield file("VideoX-Fun", own, "lora_unet__", flat=True)
    yield file("DiffSynth", own, "", RAW_PEFT)


def z_image_files(shapes: Shapes) -> Iterator[File]:
    yield from fused_family(z_image)(shapes)
    yield file("musubi-tuner", z_image(shapes), "lora_unet_", flat=True)
    yield file("ai-toolkit, diffusers' names", z_image(shapes), "diffusion_model.", PEFT)


def qwen_files(shapes: Shapes) -> Iterator[File]:
    yield from fused_family(native)(shapes)
    yield file("musubi-tuner", native(shapes), "lora_unet_", flat=True)
    yield file("DiffSynth", native(shapes), "", RAW_PEFT)


def unet_files(config: Callable[[], Mapping[str, Any]]) -> Callable[[Shapes], Iterator[File]]:
    def files(shapes: Shapes) -> Iterator[File]:
        own, other = native(shapes), unet(shapes, config())
        yield file("kohya, diffusers' names", other, "lora_unet_", flat=True)
        yield file("kohya, original names", own, "lora_unet_", flat=True)
        yield file("LyCORIS wrapper, SimpleTuner", other, "lycoris_", flat=True)
        yield file("diffusers", other, "unet.", PEFT)
        yield file("diffusers before PEFT", other, "unet.", OLD_DIFFUSERS)
        attention = list(processors(other))
        yield File("diffusers, attention processors", named(attention, "unet.", flat=False), glued)
        yield File("diffusers, processors, bare", named(attention, "", flat=False), glued)
        yield file("PEFT", other, "base_model.model.", PEFT)
        yield file("PEFT's old script", other, "unet.base_model.model.", PEFT)
        yield file("ComfyUI", own, "diffusion_model.")
        yield file("HCP-Diffusion .safetensors", other, "lora:", HCP)
        yield file("HCP-Diffusion .ckpt", other, "lora.", HCP)

    return files


def _inside(shapes: Shapes, encoder: str, wrapper: str = "") -> list[Layer]:
    """Every weight of a text encoder under its name in transformers."""
    start = f"{encoder}.transformer.{wrapper}"
    return [
        Layer(key.removeprefix(start).removesuffix(".weight"), key.removesuffix(".weight"))
        for key, shape in shapes.items()
        if key.startswith(start) and key.endswith(".weight") and len(shape) > 1
    ]


def text_files(
    *encoders: tuple[str, str, str, str], own_names: Mapping[str, str] | None = None
) -> Callable[[Shapes], Iterator[File]]:
    """Files for several encoders: (name in ComfyUI, wrapper there, kohya's prefix, diffusers' prefix)."""

    def files(shapes: Shapes) -> Iterator[File]:
        kohya: dict[str, Layer] = {}
        diffusers: dict[str, Layer] = {}
        comfy: dict[str, Layer] = {}
        listed: dict[str, Layer] = {}
        for number, (encoder, wrapper, kohya_prefix, diffusers_prefix) in enumerate(encoders, 1):
            layers = _inside(shapes, encoder, wrapper)
            kohya |= named(layers, kohya_prefix, flat=True)
            diffusers |= named(layers, diffusers_prefix, flat=False)
            prefix = f"text_encoders.{encoder}.transformer.{wrapper}"
            comfy |= named(layers, prefix, flat=False)
            listed |= named(layers, f"lora_te{number}_", flat=True)
        yield File("kohya", kohya, dotted(KOHYA))
        yield File("LyCORIS in kohya, OneTrainer", listed, dotted(KOHYA))
        yield File("diffusers", diffusers, dotted(PEFT))
        yield File("ComfyUI, OneTrainer's style for it", comfy, dotted({**PEFT, "alpha": "alpha"}))
        for prefix, encoder in (own_names or {}).items():
            layers = _inside(shapes, encoder)
            yield file(f"as {prefix}…", layers, prefix, HCP if ":" in prefix else KOHYA)

    return files
