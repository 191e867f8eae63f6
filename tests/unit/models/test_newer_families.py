"""Names of models that newer ComfyUIs know, in their files; by hand, after the programs that write them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from lycoris_algos.formats import model_paths
from lycoris_algos.model_files import LayerIndex, Spot, index_checkpoint

KREA_2 = {
    "blocks.{}.attn.wq": ("transformer.transformer_blocks.{}.attn.to_q",),
    "blocks.{}.attn.gate": ("lycoris_transformer_blocks_{}_attn_to_gate",),
    "blocks.{}.attn.wo": (
        "transformer.transformer_blocks.{}.attn.to_out.0",
        "diffusion_model.transformer_blocks.{}.attn.to_out",
    ),
    "blocks.{}.mlp.down": ("transformer_blocks.{}.ff.down", "lora_unet_blocks_{}_mlp_down"),
    "txtfusion.layerwise_blocks.{}.attn.wv": ("transformer.text_fusion.layerwise_blocks.{}.attn.to_v",),
    "txtfusion.refiner_blocks.{}.mlp.up": ("lycoris_text_fusion_refiner_blocks_{}_ff_up",),
    "first": ("transformer.img_in",),
    "tmlp.2": ("transformer.time_embed.linear_2",),
    "txtmlp.1": ("transformer.txt_in.linear_1",),
    "txtfusion.projector": ("transformer.text_fusion.projector",),
    "last.linear": ("transformer.final_layer.linear",),
}
KREA_2_NORMS = {
    "blocks.{}.attn.qknorm.qnorm.scale": ("transformer.transformer_blocks.{}.attn.norm_q",),
    "blocks.{}.prenorm.scale": (
        "transformer.transformer_blocks.{}.norm1",
        "diffusion_model.blocks.{}.prenorm",
        "diffusion_model.blocks.{}.prenorm.scale",
    ),
    "txtmlp.0.scale": ("transformer.txt_in.norm",),
    "last.norm.scale": ("transformer.final_layer.norm",),
}
ACE_STEP_15 = {
    "decoder.layers.{}.cross_attn.q_proj": (
        "base_model.model.layers.{}.cross_attn.q_proj",
        "lycoris_layers_{}_cross_attn_q_proj",
        "diffusion_model.decoder.layers.{}.cross_attn.q_proj",
    ),
    "decoder.layers.{}.mlp.down_proj": ("lycoris_layers_{}_mlp_down_proj",),
    "decoder.time_embed.linear_1": ("base_model.model.time_embed.linear_1",),
    "encoder.lyric_encoder.layers.{}.self_attn.q_proj": (
        "lora_unet_encoder_lyric_encoder_layers_{}_self_attn_q_proj",
    ),
    "tokenizer.audio_acoustic_proj": ("diffusion_model.tokenizer.audio_acoustic_proj",),
}
LTX_2 = {
    "patchify_proj": ("transformer.proj_in", "patchify_proj"),
    "audio_patchify_proj": ("transformer.audio_proj_in", "audio_patchify_proj"),
    "transformer_blocks.{}.audio_to_video_attn.to_q": (
        "transformer.transformer_blocks.{}.audio_to_video_attn.to_q",
        "transformer_blocks.{}.audio_to_video_attn.to_q",
    ),
    "transformer_blocks.{}.audio_attn1.q_norm": ("transformer.transformer_blocks.{}.audio_attn1.norm_q",),
    "adaln_single.linear": ("transformer.time_embed.linear",),
    "audio_adaln_single.emb.timestep_embedder.linear_1": (
        "transformer.audio_time_embed.emb.timestep_embedder.linear_1",
    ),
    "av_ca_a2v_gate_adaln_single.linear": ("transformer.av_cross_attn_video_a2v_gate.linear",),
    "av_ca_audio_scale_shift_adaln_single.linear": ("transformer.av_cross_attn_audio_scale_shift.linear",),
}
KANDINSKY_5 = {
    "visual_embeddings.in_layer": ("transformer.visual_embeddings.in_layer",),
    "visual_transformer_blocks.{}.cross_attention.to_key": (
        "transformer.visual_transformer_blocks.{}.cross_attention.to_key",
        "visual_transformer_blocks.{}.cross_attention.to_key",
        "lora_unet_visual_transformer_blocks_{}_cross_attention_to_key",
    ),
}
ERNIE_IMAGE = {
    "layers.{}.mlp.linear_fc2": (
        "transformer.layers.{}.mlp.linear_fc2",
        "lora_unet_layers_{}_mlp_linear_fc2",
    ),
    "layers.{}.self_attention.to_out.0": ("transformer.layers.{}.self_attention.to_out.0",),
}
ANIMA = {
    "x_embedder.proj.1": ("transformer.patch_embed.proj", "lora_unet_x_embedder_proj_1"),
    "blocks.{}.adaln_modulation_self_attn.1": ("transformer.transformer_blocks.{}.norm1.linear_1",),
    "blocks.{}.self_attn.output_proj": ("lora_unet_blocks_{}_self_attn_output_proj",),
    "llm_adapter.blocks.{}.cross_attn.o_proj": ("lora_unet_llm_adapter_blocks_{}_cross_attn_o_proj",),
    "llm_adapter.out_proj": ("diffusion_model.llm_adapter.out_proj",),
}
# Flux without the vector of its second text encoder.
LONGCAT_IMAGE = {
    "img_in": ("transformer.x_embedder",),
    "double_blocks.{}.img_mod.lin": ("transformer.transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mlp.2": ("lycoris_transformer_blocks_{}_ff_context_net_2",),
    "single_blocks.{}.linear2": ("transformer.single_transformer_blocks.{}.proj_out",),
}
FAMILIES = {
    "LongCat-Image": LONGCAT_IMAGE,
    "Krea 2": KREA_2 | KREA_2_NORMS,
    "ACE-Step 1.5": ACE_STEP_15,
    "LTX-2": LTX_2,
    "Kandinsky 5": KANDINSKY_5,
    "Ernie Image": ERNIE_IMAGE,
    "Anima": ANIMA,
}


def indexed(natives: Iterable[str], prefix: str) -> LayerIndex:
    """A file that holds the layers ``natives`` of twelve blocks, and nothing else."""
    keys = [native.format(n) for native in natives for n in range(12 if "{}" in native else 1)]
    shapes = {
        f"{prefix}{key}" if key.endswith(".scale") else f"{prefix}{key}.weight": (
            (8,) if key.endswith((".scale", "_norm")) else (8, 8)
        )
        for key in keys
    }
    index = index_checkpoint(shapes)
    assert index.text is None
    assert index.model is not None
    return index.model


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "net."])
@pytest.mark.parametrize("title", FAMILIES)
def test_every_name_reaches_its_layer(title: str, prefix: str) -> None:
    names = FAMILIES[title]
    index = indexed(names, prefix)
    for native, others in names.items():
        for name in (*others, f"diffusion_model.{native}"):
            key = prefix + native.format(11)
            spots = [spot for path in model_paths(name.format(11)) for spot in index.names.look_up(path)]
            assert spots[:1] == [Spot(key if key.endswith(".scale") else f"{key}.weight")], name


@pytest.mark.parametrize(("stored", "other"), [("scale", "weight"), ("weight", "scale")])
def test_the_weight_of_a_norm_is_found_whatever_it_is_called(stored: str, other: str) -> None:
    """BFL calls Flux' norms one way, newer ComfyUIs the other; both are in files of models."""
    norm = "double_blocks.0.img_attn.norm.query_norm"
    index = index_checkpoint(
        {
            f"{norm}.{stored}": (128,),
            "img_in.weight": (64, 16),
            "double_blocks.0.img_mod.lin.weight": (384, 64),
            "double_blocks.0.img_attn.qkv.weight": (192, 64),
        }
    )
    assert index.model is not None
    for name in (
        f"diffusion_model.{norm}",
        f"diffusion_model.{norm}.{other}",
        f"diffusion_model.{norm}.{stored}",
        f"{norm}.{other}",
        f"lora_unet_{norm.replace('.', '_')}",
        f"lora_unet_{norm.replace('.', '_')}_{other}",
        f"lycoris_{norm.replace('.', '_')}",
        "transformer.transformer_blocks.0.attn.norm_q",
    ):
        assert list(index.model.meanings(name)) == [(Spot(f"{norm}.{stored}"),)], name


@pytest.mark.parametrize(
    "name", ["lora_te_{}", "text_encoders.qwen3_06b.transformer.{}", "text_encoders.transformer.{}"]
)
def test_a_language_model_answers_to_whatever_its_encoder_is_called(name: str) -> None:
    """Anima's text encoder is a file of a language model, which does not say so."""
    path = "model.layers.0.self_attn.q_proj"
    index = index_checkpoint({f"{path}.weight": (8, 8), "model.embed_tokens.weight": (16, 8)})
    assert index.text is not None
    inner = path.removeprefix("model.").replace(".", "_") if name.startswith("lora_") else path
    assert list(index.text.meanings(name.format(inner))) == [(Spot(f"{path}.weight"),)]


def test_a_language_model_that_sees_is_a_text_encoder_as_a_whole() -> None:
    """LTX-2's Gemma 3, whose eyes are no diffusion model."""
    eyes = "vision_model.encoder.layers.0.self_attn.q_proj"
    keys = ("model.layers.0.self_attn.q_proj", eyes, "multi_modal_projector.mm_soft_emb_norm")
    index = index_checkpoint({f"{key}.weight": (8, 8) for key in keys})
    assert index.model is None
    assert index.text is not None
    found = list(index.text.meanings(f"text_encoders.gemma3_12b.transformer.{eyes}"))
    assert found == [(Spot(f"{eyes}.weight"),)]
