"""Families that not every supported host has: tiny models, and what trainers call their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zoo

from ._files import fused_family
from ._layers import PEFT, File, Layer, Shapes, Subject, file, native, same


def _kept(shapes: Shapes, *beginnings: str) -> Iterator[Layer]:
    """The layers below ``beginnings``, which have the same names everywhere."""
    return (layer for layer in native(shapes) if layer.path.startswith(beginnings))


def krea_2(shapes: Shapes) -> list[Layer]:
    """Krea 2 as diffusers has it."""
    layers: list[Layer] = []
    for other, own in (
        ("transformer_blocks", "blocks"),
        ("text_fusion.layerwise_blocks", "txtfusion.layerwise_blocks"),
        ("text_fusion.refiner_blocks", "txtfusion.refiner_blocks"),
    ):
        pairs = {f"attn.to_{part}": f"attn.w{part}" for part in "qkv"}
        pairs |= {"attn.to_gate": "attn.gate", "attn.to_out.0": "attn.wo"}
        pairs |= {f"ff.{name}": f"mlp.{name}" for name in ("gate", "up", "down")}
        for n in range(2):
            layers += same(f"{other}.{n}.", f"{own}.{n}.", pairs, shapes)
    ends = {
        "img_in": "first",
        "time_embed.linear_1": "tmlp.0",
        "time_embed.linear_2": "tmlp.2",
        "time_mod_proj": "tproj.1",
        "txt_in.linear_1": "txtmlp.1",
        "txt_in.linear_2": "txtmlp.3",
        "text_fusion.projector": "txtfusion.projector",
        "final_layer.linear": "last.linear",
    }
    return [*layers, *same("", "", ends, shapes)]


def ltx_2(shapes: Shapes) -> list[Layer]:
    """LTX-2 as diffusers has it, whose connectors are no part of its transformer."""
    layers = list(_kept(shapes, "transformer_blocks.", "proj_out", "audio_proj_out", "caption_projection."))
    layers += same("", "", {"proj_in": "patchify_proj", "audio_proj_in": "audio_patchify_proj"}, shapes)
    for other, own in (
        ("time_embed", "adaln_single"),
        ("audio_time_embed", "audio_adaln_single"),
        ("av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
        ("av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
        ("av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
        ("av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
    ):
        parts = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
        layers += same(f"{other}.", f"{own}.", {part: part for part in parts}, shapes)
    return layers


def ace_step_15_files(shapes: Shapes) -> Iterator[File]:
    """Its trainers wrap the decoder alone."""
    start = "decoder."
    decoder = [Layer(layer.path.removeprefix(start), layer.native) for layer in _kept(shapes, start)]
    yield file("ACE-Step's own", decoder, "base_model.model.", PEFT)
    yield file("LyCORIS wrapper", decoder, "lycoris_", flat=True)
    yield file("kohya", native(shapes), "lora_unet_", flat=True)
    yield file("ComfyUI", native(shapes), "diffusion_model.")


def _subject(name: str, files: Callable[[Shapes], Iterable[File]]) -> Subject:
    def load() -> Any:
        return zoo.model(name)

    return Subject(f"{name} (tiny)", load, files, has=lambda: zoo.has(name))


NEWER: tuple[Subject, ...] = (
    _subject("Krea 2", fused_family(krea_2)),
    _subject("LTX-2", fused_family(ltx_2)),
    _subject("ACE-Step 1.5", ace_step_15_files),
    _subject("Kandinsky 5", fused_family(native)),
    _subject("Ernie Image", fused_family(native)),
    _subject("Anima", fused_family(native)),
)
