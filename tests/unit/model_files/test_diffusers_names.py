"""Models in diffusers' names: found under the original names as well, whole or in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_shapes import UNET, clip, flux, sd15, sdxl, t5
from folders import save_pipeline

from lycoris_algos import from_tensors
from lycoris_algos.model_files import BaseFile, Checkpoint, Spot, index_checkpoint, index_header
from lycoris_algos.models import diffusers_names_in, native_names_in
from lycoris_algos.models.unet import original_names, unet_names

Shapes = dict[str, tuple[int, ...]]


def inside(shapes: Shapes) -> Shapes:
    return {key.removeprefix(UNET): shape for key, shape in shapes.items() if key.startswith(UNET)}


def unet_of_diffusers(shapes: Shapes) -> tuple[Shapes, dict[str, str]]:
    """(the UNet as diffusers has it, {its key: the original one})."""
    own = inside(shapes)
    renamed = {f"{path}.weight": key for path, key in unet_names(own)}
    return {name: own[key] for name, key in renamed.items()}, renamed


@pytest.mark.parametrize("shapes", [sd15(), sdxl()], ids=["sd15", "sdxl"])
def test_every_layer_of_a_unet_has_its_original_name(shapes: Shapes) -> None:
    stored, renamed = unet_of_diffusers(shapes)
    found = {key: f"{path}.weight" for path, key in original_names(stored)}
    assert len(found) > 60
    assert found == renamed
    assert not list(original_names(inside(shapes)))


def diffusers_flux(size: int = 12) -> Shapes:
    """Flux as diffusers stores it."""
    shapes = flux(size=size)
    stored: Shapes = {}
    for path, located in diffusers_names_in(shapes):
        rows = shapes[located.key][0] if located.rows is None else located.rows[1]
        stored[f"{path}.weight"] = (rows, *shapes[located.key][1:])
    return stored


def test_layers_of_flux_that_diffusers_stores_in_pieces() -> None:
    known = dict(native_names_in(diffusers_flux()))
    pieces = [part.key for part in known["double_blocks.1.img_attn.qkv"]]
    assert pieces == [f"transformer_blocks.1.attn.to_{part}.weight" for part in "qkv"]
    assert [part.key for part in known["single_blocks.0.linear1"]] == [
        *(f"single_transformer_blocks.0.attn.to_{part}.weight" for part in "qkv"),
        "single_transformer_blocks.0.proj_mlp.weight",
    ]
    (last,) = known["final_layer.adaLN_modulation.1"]
    assert last.swapped
    assert not list(native_names_in(flux()))
    broken = {key: shape for key, shape in diffusers_flux().items() if ".1.attn.to_k." not in key}
    assert "double_blocks.1.img_attn.qkv" not in dict(native_names_in(broken))


def test_every_original_name_of_flux_is_found() -> None:
    stored = diffusers_flux()
    index = index_checkpoint({f"transformer/{key}": shape for key, shape in stored.items()})
    assert index.model is not None
    for key, shape in flux().items():
        if key.endswith(".weight"):
            path = key.removesuffix(".weight")
            name = f"lora_unet_{path.replace('.', '_')}"
            spots = next(index.model.meanings(name), None)
            assert spots is not None, name
            assert index.model.shape(spots) == shape, name


def test_components_of_a_folder(tmp_path: Path) -> None:
    def numbers(shapes: Shapes) -> dict[str, torch.Tensor]:
        return {key: torch.zeros(shape) for key, shape in shapes.items()}

    stored, _ = unet_of_diffusers(sdxl())
    folder = save_pipeline(
        tmp_path / "p",
        {
            "unet": numbers(stored),
            "text_encoder": numbers(clip("", 768, 1)),
            "text_encoder_2": numbers(clip("", 1280, 1)),
            "text_encoder_3": numbers(t5("")),
            "vae": {"decoder.conv_in.weight": torch.ones(4, 4, 3, 3)},
        },
    )
    with Checkpoint(folder) as checkpoint:
        index = index_header(checkpoint.header.tensors)
    assert index.parts["vae/decoder.conv_in.weight"] == "vae"
    assert index.what == "a diffusion model and text encoders"
    assert index.text is not None
    assert index.text.encoders == ("clip_l", "clip_g", "t5xxl")
    layer = "text_model_encoder_layers_0_mlp_fc1"
    for number, component in (("1", "text_encoder"), ("2", "text_encoder_2")):
        spots = next(index.text.meanings(f"lora_te{number}_{layer}"))
        assert spots == (Spot(f"{component}/text_model.encoder.layers.0.mlp.fc1.weight"),)
    assert index.model is not None
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    ):
        (spot,) = next(index.model.meanings(name))
        assert spot.key == "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
        shape = index.model.shape((spot,))
        assert shape is not None
    kohya = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    adapters = from_tensors(
        {
            f"{kohya}.lora_up.weight": torch.ones(shape[0], 1),
            f"{kohya}.lora_down.weight": torch.ones(1, shape[1]),
        }
    )
    with BaseFile(folder, [adapters]) as base:
        assert base.shape(kohya, "weight") == shape
        assert not base.fetch(kohya, "weight").any()
        path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        assert [part.name for part in base.spelled(kohya, "diffusers") or ()] == [f"unet.{path}"]
        assert [part.name for part in base.spelled(f"unet.{path}", "kohya") or ()] == [kohya]


def test_a_language_model_of_a_folder_is_found() -> None:
    shapes: Shapes = {f"model.layers.{n}.self_attn.q_proj.weight": (8, 8) for n in range(2)}
    alone = index_checkpoint(shapes)
    below = index_checkpoint({f"text_encoder/{key}": shape for key, shape in shapes.items()})
    name = "lora_te_model_layers_1_self_attn_q_proj"
    for index, prefix in ((alone, ""), (below, "text_encoder/")):
        assert index.text is not None
        assert next(index.text.meanings(name))[0].key == f"{prefix}model.layers.1.self_attn.q_proj.weight"
