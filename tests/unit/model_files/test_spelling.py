"""From places of a file back to names: every dialect, and that each name means its layer again."""

from __future__ import annotations

import pytest
from checkpoint_shapes import Shapes, clip, flux, flux_checkpoint, sd15, sdxl, t5

from lycoris_algos.model_files import CheckpointIndex, LayerIndex, Spots, index_checkpoint
from lycoris_algos.network.respelling import WRITABLE

CHECKPOINTS = {
    "SD 1.5": sd15(),
    "SDXL": sdxl(),
    "Flux": flux(),
    "Flux with text encoders": flux_checkpoint(),
    "CLIP-L": clip("", 768),
    "T5": t5(""),
}
INDEXES = {name: index_checkpoint(shapes) for name, shapes in CHECKPOINTS.items()}
every_checkpoint = pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)


def meaning(index: CheckpointIndex, layer: str) -> tuple[LayerIndex, Spots]:
    """What ``layer`` means where no adapter decides."""
    return next(index.meanings(layer))


def spelled(checkpoint: str, layer: str) -> dict[str, str | None]:
    """``layer`` in every dialect, one word each."""
    half, spots = meaning(INDEXES[checkpoint], layer)
    return {dialect: half.name_in(dialect, spots) for dialect in WRITABLE}


SD15_TO_Q = {
    "kohya": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "comfy": "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "diffusers": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "peft": "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
}
SDXL_TO_K = {
    "kohya": "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
    "comfy": "diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k",
    "diffusers": "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    "peft": "base_model.model.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
}
SDXL_LABEL = {
    "kohya": "lora_unet_label_emb_0_0",
    "comfy": "diffusion_model.label_emb.0.0",
    "diffusers": "unet.add_embedding.linear_1",
    "peft": "base_model.model.add_embedding.linear_1",
}
FLUX_PROJ = {
    "kohya": "lora_unet_double_blocks_0_img_attn_proj",
    "comfy": "diffusion_model.double_blocks.0.img_attn.proj",
    "diffusers": "transformer.transformer_blocks.0.attn.to_out.0",
    "peft": "base_model.model.transformer_blocks.0.attn.to_out.0",
}
#: diffusers has queries, keys and values apart; the others have them in one.
FLUX_QKV = {
    "kohya": "lora_unet_double_blocks_1_txt_attn_qkv",
    "comfy": "diffusion_model.double_blocks.1.txt_attn.qkv",
    "diffusers": None,
    "peft": None,
}
FLUX_TO_K = {
    "kohya": None,
    "comfy": None,
    "diffusers": "transformer.single_transformer_blocks.1.attn.to_k",
    "peft": "base_model.model.single_transformer_blocks.1.attn.to_k",
}
#: ComfyUI has its halves the other way round, so what is written for one cannot bear the other's name.
FLUX_LAST_NORM = {
    "kohya": None,
    "comfy": None,
    "diffusers": "transformer.norm_out.linear",
    "peft": "base_model.model.norm_out.linear",
}


@pytest.mark.parametrize(
    ("checkpoint", "names"),
    [
        ("SD 1.5", SD15_TO_Q),
        ("SDXL", SDXL_TO_K),
        ("SDXL", SDXL_LABEL),
        ("Flux", FLUX_PROJ),
        ("Flux", FLUX_QKV),
        ("Flux", FLUX_TO_K),
        ("Flux", FLUX_LAST_NORM),
        ("Flux with text encoders", FLUX_PROJ),
    ],
)
def test_a_layer_of_a_diffusion_model_in_every_dialect(checkpoint: str, names: dict[str, str | None]) -> None:
    for name in filter(None, names.values()):
        assert spelled(checkpoint, name) == names


def text(number: str, pipeline: str, encoder: str, path: str) -> dict[str, str | None]:
    """A layer of a text encoder, by kohya's prefix, diffusers' and ComfyUI's name of it."""
    return {
        "kohya": f"lora_te{number}_{path.replace('.', '_')}",
        "comfy": f"text_encoders.{encoder}.transformer.{path}",
        "diffusers": f"text_encoder{pipeline}.{path}",
        "peft": f"base_model.model.{path}",
    }


FC1 = "text_model.encoder.layers.1.mlp.fc1"
K_PROJ = "text_model.encoder.layers.0.self_attn.k_proj"
T5_Q = "encoder.block.1.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("checkpoint", "layer", "names"),
    [
        ("SD 1.5", f"lora_te_{FC1.replace('.', '_')}", text("", "", "clip_l", FC1)),
        ("CLIP-L", f"text_encoder.{FC1}", text("", "", "clip_l", FC1)),
        ("SDXL", f"text_encoder.{K_PROJ}", text("1", "", "clip_l", K_PROJ)),
        ("SDXL", f"lora_te2_{K_PROJ.replace('.', '_')}", text("2", "_2", "clip_g", K_PROJ)),
        ("SDXL", "lora_te2_text_projection", text("2", "_2", "clip_g", "text_projection")),
        ("Flux with text encoders", f"lora_te1_{FC1.replace('.', '_')}", text("1", "", "clip_l", FC1)),
        # kohya counts T5 as the third, diffusers as Flux' second.
        ("Flux with text encoders", f"lora_te2_{T5_Q.replace('.', '_')}", text("3", "_2", "t5xxl", T5_Q)),
        ("T5", f"text_encoder.{T5_Q}", text("1", "", "t5xxl", T5_Q)),
    ],
)
def test_a_layer_of_a_text_encoder_in_every_dialect(
    checkpoint: str, layer: str, names: dict[str, str | None]
) -> None:
    assert spelled(checkpoint, layer) == names


@every_checkpoint
@pytest.mark.parametrize("dialect", WRITABLE)
def test_every_name_means_its_layer_again(index: CheckpointIndex, dialect: str) -> None:
    named = 0
    for half in filter(None, (index.model, index.text)):
        paths = half.find_paths()
        in_diffusers = dialect in ("diffusers", "peft") and not half.is_text
        for spot in {**paths.own, **paths.diffusers}:
            name = half.name_in(dialect, (spot,))
            assert (name is None) == (spot not in (paths.diffusers if in_diffusers else paths.own))
            if name is None:
                continue
            named += 1
            if dialect == "peft" and half.is_text:
                # Such a name does not tell which of two encoders is meant: the shapes do.
                assert (spot,) in list(half.meanings(name))
            else:
                assert meaning(index, name) == (half, (spot,)), name
    assert named > 10


@pytest.mark.parametrize("checkpoint", ["SD 1.5", "SDXL"])
def test_diffusers_has_a_name_for_all_of_a_unet(checkpoint: str) -> None:
    half = INDEXES[checkpoint].model
    assert half is not None
    weights = [spot for spot in half.find_paths().own if not spot.key.endswith(".bias")]
    names = [half.name_in("diffusers", (spot,)) for spot in weights]
    assert None not in names
    assert len(set(names)) == len(names)


def test_there_is_no_name_for_what_nobody_names() -> None:
    shapes: Shapes = {f"model.layers.{number}.self_attn.q_proj.weight": (8, 8) for number in range(3)}
    index = index_checkpoint(shapes)
    half, spots = meaning(index, "lora_te1_layers_0_self_attn_q_proj")
    assert half.is_text
    # Nothing tells what ComfyUI calls a language model that is alone in its file.
    assert {half.name_in(dialect, spots) for dialect in WRITABLE} == {None}
    index = index_checkpoint({f"blocks.{number}.x.weight": (8, 8) for number in range(9)})
    half, spots = meaning(index, "lora_unet_blocks_3_x")
    assert half.name_in("kohya", spots) == "lora_unet_blocks_3_x"
    assert half.name_in("diffusers", spots) is None


def test_a_layer_in_pieces_has_no_name() -> None:
    shapes = {f"blocks.{n}.to_{part}.weight": (8, 8) for n in range(6) for part in "qkv"}
    half, spots = meaning(index_checkpoint(shapes), "lora_unet_blocks_0_to_qkv")
    assert len(spots) == 3
    assert half.name_in("kohya", spots) is None
