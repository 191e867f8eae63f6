"""A loaded model and the file that it came from answer alike: what names mean, what dialects call layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from lab import models, paths
from safetensors.torch import load_file

import lycoris_algos
from lycoris_algos.io import read_header
from lycoris_algos.merge import plan_bake, run_bake
from lycoris_algos.model_files import BaseFile
from lycoris_algos.network import StackEntry

EVERYWHERE = ("kohya", "comfy", "diffusers", "peft")


@pytest.mark.parametrize(
    ("name", "dialects"),
    [
        ("tiny_sd15", EVERYWHERE),
        ("tiny_sd3", EVERYWHERE),
        ("tiny_wan", EVERYWHERE),
        ("tiny_hyvid", EVERYWHERE),
    ],
)
def test_the_file_of_a_model_knows_what_the_model_knows(
    name: str, dialects: tuple[str, ...], load: Any, host: Callable[[str], ModuleType]
) -> None:
    import comfy.lora

    model, clip = load(name)
    layers = list(comfy.lora.model_lora_keys_unet(model.model, {}))
    if clip is not None:
        layers += comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    loaded = host("combining").HostModel(model, clip, [])

    def answers(known: Any, layer: str) -> dict[str, Any]:
        shapes = {what: known.shape(layer, what) for what in ("weight", "bias")}
        parts = {dialect: known.spelled(layer, dialect) or () for dialect in dialects}
        # As tuples: the pack has a copy of the library of its own.
        names = {
            dialect: [(one_name(part.name), part.rows, part.within) for part in own] or None
            for dialect, own in parts.items()
        }
        return {**shapes, **names, "is text": known.is_text(layer)}

    with BaseFile(paths.MODELS / models.FILES[name][0]) as file:
        found = {layer: answers(loaded, layer) for layer in layers}
        assert found == {layer: answers(file, layer) for layer in layers}
    # ComfyUI lists some layers that a small model does not have.
    assert sum(answer["weight"] is not None for answer in found.values()) > 0.6 * len(layers)
    for dialect in dialects:
        assert sum(answer[dialect] is not None for answer in found.values()) > 0.4 * len(layers), dialect


def one_name(layer: str) -> str:
    """``layer``, whose norm a file of an older host calls by its parameter and a newer host does not."""
    return re.sub(r"(?<=_norm)[._]scale$", "", layer)


CORE_KNOWS = (
    *("SD 1.5 (tiny)", "SDXL", "SD 3.5", "Flux", "Wan 2.1 (tiny)", "Qwen-Image"),
    *("CLIP of SD 1.5 (real)", "CLIP of SDXL", "CLIP of SD 3", "CLIP of Flux"),
)


@pytest.mark.parametrize("title", CORE_KNOWS)
def test_comfyui_itself_knows_the_names_that_are_written(
    title: str, pack: ModuleType, host: Callable[[str], ModuleType]
) -> None:
    """What its loader has a name for with kohya's or its own prefix, it finds under ours."""
    import comfy.lora
    import families

    subject = next(found for found in families.SUBJECTS if found.title == title)
    loaded = families.load(subject)
    if subject.text:
        core = comfy.lora.model_lora_keys_clip(loaded.cond_stage_model, {})
        known = host("combining").HostModel(None, loaded, [])
    else:
        core = comfy.lora.model_lora_keys_unet(loaded.model, {})
        known = host("combining").HostModel(loaded, None, [])
    families.forget()
    written = 0
    for dialect, prefixes in (("kohya", ("lora_unet_", "lora_te")), ("comfy", ("diffusion_model.", "text_"))):
        for layer, target in core.items():
            # A single CLIP's projection does nothing, and core has an odd name for it.
            idle = title.startswith("CLIP of SD 1.5") and "text_projection" in layer
            if idle or not layer.startswith(prefixes) or not isinstance(target, str):
                continue
            if known.shape(layer, "weight") is not None:
                (part,) = known.spelled(layer, dialect)
                assert part.rows is None, layer
                assert part.within is None, layer
                assert core[part.name] == target, layer
                written += 1
    assert written > 100


@pytest.mark.parametrize("prefix", ["lycoris_", "base_model.model."])
def test_a_name_that_leaves_it_open_is_the_text_encoders_for_every_job(
    prefix: str, sd15: Any, apply: Any, tmp_path: Path
) -> None:
    """Apply and Merge take the CLIP's strength for it; test_combining holds Combine and Save to that."""
    model, clip = sd15
    inner = "encoder.layers.0.self_attn.q_proj"
    layer = prefix + (inner if prefix.endswith(".") else inner.replace(".", "_"))
    key = f"clip_l.transformer.text_model.{inner}.weight"
    weight = tiny.parameter(clip.patcher, key).float().clone()
    tensors = tiny.make("lora", weight)
    (loaded,) = apply.stack({layer: tensors})
    entry = replace(loaded, strength_model=5.0, strength_clip=0.25)
    wanted = tiny.changed(weight, (tensors, 0.25))

    patched_model, patched_clip, report = apply(model, (entry,), clip=clip)
    assert "1 of 1 layers applied" in report
    assert patched_model.patches == {}
    with tiny.loaded(patched_clip.patcher) as now:
        tiny.assert_weight(now(key), wanted)

    _, _, without = apply(model, (entry,), on_unmatched="report only")
    assert "0 of 1 layers applied" in without
    assert "SD15 has no such layer" in without

    base = paths.MODELS / models.FILES["tiny_sd15"][0]
    adapters = lycoris_algos.from_tensors({f"{layer}.{name}": value for name, value in tensors.items()})
    plan = plan_bake(read_header(base), [StackEntry(adapters, 5.0, 0.25)])
    out = run_bake(plan, base, tmp_path / "out.safetensors").path
    before, after = load_file(base), load_file(out)
    (changed,) = (name for name, value in before.items() if not torch.equal(value, after[name]))
    assert changed.endswith(f"text_model.{inner}.weight")
    tiny.assert_weight(after[changed], wanted)
