"""A file of a model answers to every name that ComfyUI has for the model, and means the same by it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import zoo

from lycoris_algos.formats import model_paths
from lycoris_algos.model_files import Spot, index_checkpoint

MODEL = "diffusion_model."


# ComfyUI takes Lumina 2 for Z-Image, whose names it has none of.
@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name != "Lumina 2"])
def test_of_diffusion_models(name: str, pack: ModuleType, host: Callable[[str], ModuleType]) -> None:
    import comfy.lora

    if not zoo.has(name):
        pytest.skip("this ComfyUI does not have it")
    module = zoo.model(name).model
    shapes = {k: tuple(v.shape) for k, v in module.state_dict().items() if k.startswith(MODEL)}
    index = index_checkpoint(shapes)
    assert index.model is not None
    assert index.text is None
    known = 0
    for layer, target in comfy.lora.model_lora_keys_unet(module, {}).items():
        spot = host("keymap")._spot_of(target)
        wanted = Spot(spot.key, None if spot.part is None else tuple(spot.part), swapped=spot.swapped)
        if spot.key not in shapes or spot.key.endswith(".bias"):
            continue
        if name == "Flux 2" and layer.endswith("proj_mlp"):
            continue  # ComfyUI takes half of its rows, as Flux has them
        found = [found for path in model_paths(layer) for found in index.model.names.look_up(path)]
        assert found[:1] == [wanted], layer
        known += 1
    assert known > 40


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", zoo.ENCODERS)
def test_of_text_encoders(name: str, named: bool, pack: ModuleType) -> None:
    """``named``: in a checkpoint, which says what the encoder is called; else in a file of its own."""
    import comfy.lora

    if not zoo.has_encoder(name):
        pytest.skip("this ComfyUI does not have it")
    stage = zoo.clip(name).cond_stage_model
    inside = {key: tuple(value.shape) for key, value in stage.state_dict().items() if ".transformer." in key}

    def in_file(key: str) -> str:
        return f"text_encoders.{key}" if named else key.partition(".transformer.")[2]

    index = index_checkpoint({in_file(key): shape for key, shape in inside.items()})
    assert index.text is not None
    known = 0
    for layer, key in comfy.lora.model_lora_keys_clip(stage, {}).items():
        if key in inside and not key.endswith(".bias"):
            (first, *_) = index.text.meanings(layer)
            assert first == (Spot(in_file(key)),), layer
            known += 1
    assert known > 10
