"""The index of checkpoints, against the conversions of ComfyUI itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lab import models, paths
from torch import Tensor

from lycoris_algos.io import read_header
from lycoris_algos.model_files import index_checkpoint


def clip_model(config: str, prefix: str) -> dict[str, tuple[int, ...]]:
    """{key: shape} of ComfyUI's module of a CLIP."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    settings = json.loads((paths.COMFYUI / "comfy" / config).read_text("utf-8"))
    with torch.device("meta"):
        module = CLIPTextModel(settings, torch.float32, "meta", comfy.ops.disable_weight_init)
    return {f"{prefix}{key}": tuple(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "root", "encoder"),
    [
        ("clip_config_bigg.json", "conditioner.embedders.1.model.", "clip_g"),
        ("text_encoders/sd2_clip_config.json", "cond_stage_model.model.", "clip_h"),
    ],
)
def test_openclip_layers_are_found_where_core_puts_them(
    config: str, root: str, encoder: str, pack: ModuleType
) -> None:
    """Each weight of OpenCLIP's form is numbered, converted by ComfyUI, and found again by its new name."""
    import comfy.utils

    if not (paths.COMFYUI / "comfy" / config).is_file():
        config = f"text_encoders/{Path(config).name}"
    if not (paths.COMFYUI / "comfy" / config).is_file():
        config = Path(config).name
    target = clip_model(config, "")
    width = target["text_model.final_layer_norm.weight"][0]
    stored: dict[str, Tensor] = {"text_projection": torch.empty(width, width)}
    for key, shape in target.items():
        parts = key.split(".")
        if key.startswith("text_model.encoder.layers.0."):
            name = ".".join(parts[4:])
            table = {
                "layer_norm1": "ln_1",
                "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
                "self_attn.out_proj": "attn.out_proj",
            }
            for ours, theirs in table.items():
                if name.startswith(ours):
                    stored[f"transformer.resblocks.0.{theirs}.{parts[-1]}"] = torch.empty(shape)
    stored["transformer.resblocks.0.attn.in_proj_weight"] = torch.empty(3 * width, width)
    stored["transformer.resblocks.0.attn.in_proj_bias"] = torch.empty(3 * width)
    stored["token_embedding.weight"] = torch.empty(target["text_model.embeddings.token_embedding.weight"])
    stored["positional_embedding"] = torch.empty(77, width)
    stored["ln_final.weight"] = torch.empty(width)
    for number, value in enumerate(stored.values()):
        value.copy_(torch.arange(value.numel()).reshape(value.shape) % 8191 + number)

    index = index_checkpoint({root + key: tuple(value.shape) for key, value in stored.items()})
    converted = comfy.utils.clip_text_transformers_convert(dict(stored), "", "")

    text = index.text
    assert text is not None
    assert text.encoders == (encoder,)
    for key, value in converted.items():
        if key.endswith(".bias"):
            continue
        (spot, *_) = text.names.look_up(key.removesuffix(".weight"))
        found = stored[spot.key.removeprefix(root)]
        found = found if spot.part is None else found.narrow(*spot.part)
        assert torch.equal(found.T if spot.transposed else found, value), key
        bias = converted.get(key.removesuffix(".weight") + ".bias")
        if bias is not None:
            where = text.bias_of(spot)
            assert where is not None
            own = stored[where.key.removeprefix(root)]
            assert torch.equal(own if where.part is None else own.narrow(*where.part), bias)


@pytest.mark.parametrize("name", ["tiny_sd15", "tiny_wan"])
def test_every_name_of_core_is_in_the_index(name: str, load: Any) -> None:
    import comfy.lora

    from lycoris_algos.formats import model_paths, text_paths

    model, clip = load(name)
    header = read_header(paths.MODELS / models.FILES[name][0])
    index = index_checkpoint({key: info.shape for key, info in header.tensors.items()})
    kinds = [(comfy.lora.model_lora_keys_unet(model.model, {}), model.model, index.model, model_paths)]
    if clip is not None:
        inner = clip.cond_stage_model
        kinds.append((comfy.lora.model_lora_keys_clip(inner, {}), inner, index.text, text_paths))
    for known, module, half, spelled in kinds:
        assert half is not None
        parameters = module.state_dict()
        for layer, target in known.items():
            if target in parameters and not target.endswith(".bias"):
                spots = [spot for path in spelled(layer) for spot in half.names.look_up(path)]
                assert spots, layer
                end = target.removeprefix("clip_l.").removeprefix("diffusion_model.")
                assert spots[0].key.endswith(end), layer


CONFIGS: dict[str, dict[str, int]] = {
    "mmdit_to_diffusers": {"depth": 3, "hidden_size": 64},
    "pixart_to_diffusers": {"depth": 2, "hidden_size": 64},
    "auraflow_to_diffusers": {"n_double_layers": 2, "n_layers": 4},
    "flux_to_diffusers": {"depth": 2, "depth_single_blocks": 2, "hidden_size": 64},
}


@pytest.mark.parametrize("table", CONFIGS)
def test_diffusers_names_mean_what_core_says(table: str, pack: ModuleType) -> None:
    """Core's tables of families that cannot be built small, with made-up shapes."""
    import comfy.utils

    known = getattr(comfy.utils, table)(CONFIGS[table], output_prefix="")
    shapes: dict[str, tuple[int, ...]] = {}
    for target in known.values():
        key, part = (target, None) if isinstance(target, str) else target[:2]
        rows = 64 if part is None else part[1] + part[2]
        # A norm of six parts, but for the last block's.
        rows = 6 * 64 if "adaLN" in key and isinstance(target, str) else rows
        rows = 2 * 64 if not isinstance(target, str) and len(target) > 2 else rows
        shapes[key] = (max(rows, shapes.get(key, (0,))[0]), *(() if key.endswith(".bias") else (64,)))
    index = index_checkpoint({f"model.diffusion_model.{key}": shape for key, shape in shapes.items()})
    assert index.model is not None

    for path, target in known.items():
        if not path.endswith(".weight") or "controlnet" in path:
            continue
        key, part, *function = (target, None) if isinstance(target, str) else (*target, None)[:3]
        (spot, *_) = index.model.names.look_up(path.removesuffix(".weight"))
        assert spot.key == f"model.diffusion_model.{key}", path
        assert spot.part == (None if part is None else tuple(part)), path
        assert spot.swapped == bool(function and function[0]), path
