"""Text encoder or diffusion model: one rule, and every job that asks finds the same place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_shapes import UNET, Shapes, clip
from safetensors.torch import load_file, save_file

import lycoris_algos
from lycoris_algos import AdapterSet, NoMatchError
from lycoris_algos.formats import is_text_layer
from lycoris_algos.io import read_header
from lycoris_algos.merge import CombineOptions, plan_bake, plan_combine, run_bake, run_combine
from lycoris_algos.model_files import BaseFile, Found, LayerIndex, ModelIndex, Spots, index_checkpoint
from lycoris_algos.network import StackEntry

TEXT_KEY = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
MODEL_KEY = f"{UNET}encoder.layers.0.mlp.fc1.weight"
IN_TEXT, IN_MODEL = (32, 8), (12, 12)


def checkpoint(in_model: tuple[int, int] = IN_MODEL) -> Shapes:
    """A CLIP, and a diffusion model whose layers have the same names as the CLIP's."""
    layers = {f"{UNET}encoder.layers.{number}.mlp.fc1.weight": in_model for number in range(6)}
    return {**layers, **clip("cond_stage_model.transformer.", 8)}


def file(folder: Path, shapes: Shapes) -> Path:
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / "base.safetensors")
    return folder / "base.safetensors"


def adapters(layer: str, shape: tuple[int, int]) -> AdapterSet:
    return lycoris_algos.from_tensors({f"{layer}.diff": torch.ones(shape)})


@pytest.mark.parametrize(
    ("layer", "shape", "key"),
    [
        # Names that leave it open: the size tells.
        ("lycoris_encoder_layers_0_mlp_fc1", IN_TEXT, TEXT_KEY),
        ("lycoris_encoder_layers_0_mlp_fc1", IN_MODEL, MODEL_KEY),
        ("base_model.model.encoder.layers.0.mlp.fc1", IN_TEXT, TEXT_KEY),
        ("base_model.model.encoder.layers.0.mlp.fc1", IN_MODEL, MODEL_KEY),
        ("encoder.layers.0.mlp.fc1", IN_TEXT, TEXT_KEY),
        ("encoder.layers.0.mlp.fc1", IN_MODEL, MODEL_KEY),
        # Names that tell.
        ("lycoris_text_model_encoder_layers_0_mlp_fc1", IN_TEXT, TEXT_KEY),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", IN_TEXT, TEXT_KEY),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", IN_TEXT, TEXT_KEY),
        ("lora_unet_encoder_layers_0_mlp_fc1", IN_MODEL, MODEL_KEY),
        ("diffusion_model.encoder.layers.0.mlp.fc1", IN_MODEL, MODEL_KEY),
        # Sizes that nothing has.
        ("lycoris_encoder_layers_0_mlp_fc1", (5, 5), None),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", (5, 5), None),
        ("lora_unet_encoder_layers_0_mlp_fc1", IN_TEXT, None),
        # Names that nothing has.
        ("lycoris_decoder_layers_0_mlp_fc1", IN_MODEL, None),
        ("lora_te_text_model_encoder_layers_7_mlp_fc1", IN_TEXT, None),
    ],
)
def test_every_job_finds_the_same_place(
    layer: str, shape: tuple[int, int], key: str | None, tmp_path: Path
) -> None:
    base = file(tmp_path, checkpoint())
    own = StackEntry(adapters(layer, shape), 2.0, 3.0)
    is_text = is_text_layer(layer) if key is None else key == TEXT_KEY
    multiplier = 3.0 if is_text else 2.0

    with BaseFile(base, [own.adapters]) as known:
        assert known.is_text(layer) == is_text
        assert known.shape(layer, "weight") == (None if key is None else shape)
        assert (known.same_layer(layer) is None) == (key is None)
        plan = plan_combine([own], CombineOptions(output="full"), known)
        combined = run_combine(plan).adapters
        converted = lycoris_algos.convert(own.adapters, strength_model=2.0, strength_clip=3.0, known=known)
    for result in (combined, converted):
        assert torch.equal(result[layer].delta(shape), torch.full(shape, multiplier))

    plan = plan_bake(read_header(base), [own])
    if key is None:
        (item,) = plan.files[0].unmatched
        assert item.key == layer
        with pytest.raises(NoMatchError):
            plan.require()
        return
    baked = load_file(run_bake(plan, base, tmp_path / "out.safetensors").path)
    assert torch.equal(baked.pop(key), torch.full(shape, multiplier))
    assert not any(value.any() for value in baked.values())


@pytest.mark.parametrize(
    ("layer", "is_text"),
    [
        ("lycoris_encoder_layers_0_mlp_fc1", False),
        ("base_model.model.encoder.layers.0.mlp.fc1", False),
        ("lora_te_encoder_layers_0_mlp_fc1", True),
        ("base_model.model.text_encoder.encoder.layers.0.mlp.fc1", True),
    ],
)
def test_where_both_fit_the_name_decides(layer: str, is_text: bool) -> None:
    index = index_checkpoint(checkpoint(in_model=IN_TEXT))
    own = adapters(layer, IN_TEXT)

    def check(half: LayerIndex, spots: Spots) -> Spots:
        half.check(own[layer], spots)
        return spots

    found = index.first(layer, check)
    assert isinstance(found, Found)
    assert found.is_text == is_text
    assert [spot.key for spot in found.made] == [TEXT_KEY if is_text else MODEL_KEY]


def test_what_has_no_place_says_why_or_is_left_out() -> None:
    both = index_checkpoint(checkpoint())
    layers = {
        "lycoris_encoder_layers_0_mlp_fc1": torch.ones(5, 5),
        "lora_unet_nowhere": torch.ones(5, 5),
        "lora_te_nowhere": torch.ones(5, 5),
    }
    own = lycoris_algos.from_tensors({f"{layer}.diff": value for layer, value in layers.items()})

    def place(index: ModelIndex[LayerIndex]) -> tuple[dict[str, str], dict[str, bool]]:
        found = index.place(own, lambda layer, half, spots: half.check(own[layer], spots))
        assert found.placed == {}
        return {item.key: item.reason for item in found.unmatched}, dict(found.left_out)

    reasons, left_out = place(both)
    assert left_out == {}
    # The diffusion model is the likelier meaning of the wrapper's name.
    assert "12×12" in reasons["lycoris_encoder_layers_0_mlp_fc1"]
    assert "trained for another model" in reasons["lycoris_encoder_layers_0_mlp_fc1"]
    assert reasons["lora_unet_nowhere"] == "the file's diffusion model has no such layer"
    assert reasons["lora_te_nowhere"] == "the file's text encoder has no such layer"

    reasons, left_out = place(ModelIndex(text=both.text))
    assert left_out == {"lora_unet_nowhere": False}
    assert "32×8" in reasons["lycoris_encoder_layers_0_mlp_fc1"], "what is there is compared"

    _, left_out = place(ModelIndex(model=both.model))
    assert left_out == {"lora_te_nowhere": True}


def test_an_adapter_that_fits_no_meaning_whole_means_what_its_weight_fits(tmp_path: Path) -> None:
    """Merge refuses it, because the layer has no bias; another file's adapter of the layer still finds it."""
    layer = "lora_unet_encoder_layers_0_mlp_fc1"
    biased = lycoris_algos.from_tensors(
        {f"{layer}.diff": torch.ones(IN_MODEL), f"{layer}.diff_b": torch.ones(12)}
    )
    base = file(tmp_path, checkpoint())
    (item,) = plan_bake(read_header(base), [StackEntry(biased)]).files[0].unmatched
    assert item.reason == "it changes a bias, but this layer of the file's diffusion model has none"
    with BaseFile(base, [biased, adapters(layer, IN_MODEL)]) as known:
        assert known.shape(layer, "weight") == IN_MODEL
        assert known.shape(layer, "bias") is None
