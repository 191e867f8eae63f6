"""Extract LyCORIS in the real ComfyUI: base and result are the tuned model, by this pack and by core."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lab import models, paths
from safetensors.torch import load_file, save_file

from lycoris_algos import BadValueError, NoMatchError

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
QUERY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
TEXT = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def places(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab's checkpoints (and nothing else) where the nodes look for models, and an output folder."""
    import folder_paths

    models.ensure(["tiny_sd15", "tuned_sd15", "tiny_wan"])
    for name in ("checkpoints", "diffusion_models", "text_encoders"):
        own = folders / "models" / name
        own.mkdir(parents=True)
        for model in ("tiny_sd15", "tuned_sd15", "tiny_wan"):
            (file,) = models.FILES[model]
            if file.startswith(name):
                (own / Path(file).name).symlink_to(paths.MODELS / file)
        _, extensions = folder_paths.folder_names_and_paths[name]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(own)], extensions))
        folder_paths.filename_list_cache.pop(name, None)
    monkeypatch.setattr(folder_paths, "output_directory", str(folders / "output"))
    return folders / "models"


BASE, TUNED = "checkpoints/tiny_sd15.safetensors", "checkpoints/tuned_sd15.safetensors"


@pytest.fixture
def extract(comfy_nodes: dict[str, Any], places: Path) -> Any:
    """(stack, report) of a node with its widgets as they stand on a new one, but for ``inputs``."""

    def run(name: str = "ExtractLyCORIS", **inputs: Any) -> tuple[Any, str]:
        node = comfy_nodes[name]
        items = node.define_schema().inputs
        widgets = {item.id: item.default for item in items if getattr(item, "default", None) is not None}
        asked = {"base": BASE, "tuned": TUNED} if name == "ExtractLyCORIS" else {}
        return node.execute(**{**widgets, **asked, **inputs}).args

    return run


def weights(patched: Any, keys: tuple[str, ...]) -> list[torch.Tensor]:
    with tiny.loaded(patched) as live:
        return [live(key).float().clone() for key in keys]


def wanted(key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(the base weight, the tuned one) of the files."""
    prefix = "model." if key.startswith("diffusion_model") else "cond_stage_model."
    inner = prefix + key.removeprefix("clip_l.") if prefix != "model." else prefix + key
    first, second = (load_file(paths.MODELS / models.FILES[name][0]) for name in ("tiny_sd15", "tuned_sd15"))
    return first[inner].float(), second[inner].float()


@pytest.mark.parametrize("algorithm", ["lora", "tucker lora", "dora", "full", "auto"])
def test_base_and_extracted_are_the_tuned_model(
    algorithm: str, extract: Any, apply: Any, sd15: tuple[Any, Any]
) -> None:
    model, clip = sd15
    stack, report = extract(algorithm=algorithm, linear_rank=8, conv_rank=8, dtype="fp32")
    assert "weights and biases are the same in both" in report
    patched, patched_clip, _ = apply(model, stack, clip=clip, on_unmatched="error if anything is unmatched")
    got = [*weights(patched, (QUERY, CONV)), *weights(patched_clip.patcher, (TEXT,))]
    for key, now in zip((QUERY, CONV, TEXT), got, strict=True):
        before, after = wanted(key)
        # A kernel in a Tucker form of rank 8 is cut, and weights are rounded to the model's number type.
        bound = 0.9 if key == CONV and algorithm == "tucker lora" else 5e-3
        assert float((now - after).norm()) < bound * float((after - before).norm()), key


def test_core_loads_it_too(extract: Any, sd15: tuple[Any, Any], comfy_nodes: dict[str, Any]) -> None:
    import comfy.sd
    import comfy.utils

    stack, _ = extract(linear_rank=8, conv_rank=8, norms_and_biases=False)
    path, _ = (
        comfy_nodes["SaveLyCORIS"]
        .execute(lycoris=stack, filename_prefix="extracted", dtype="fp16", dialect="as stored")
        .args
    )
    model, clip = sd15
    loaded = comfy.utils.load_torch_file(path, safe_load=True)
    patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, loaded, 1.0, 1.0)
    got = [*weights(patched, (QUERY, CONV)), *weights(patched_clip.patcher, (TEXT,))]
    for key, now in zip((QUERY, CONV, TEXT), got, strict=True):
        before, after = wanted(key)
        assert float((now - after).norm()) < 5e-3 * float((after - before).norm()), key
    # Every key of the file was used.
    known = {key.rsplit(".", 1)[0].removesuffix(".lora_up").removesuffix(".lora_down") for key in loaded}
    assert len(known) == len(patched.patches) + len(patched_clip.patcher.patches)


def test_a_size_and_patterns(extract: Any, comfy_nodes: dict[str, Any], folders: Path) -> None:
    chosen = {"include": "*attn*\n\nself_attn", "exclude": "to_v"}
    stack, report = extract(mode="size", size_mb=1.0, **chosen)
    path, _ = (
        comfy_nodes["SaveLyCORIS"]
        .execute(lycoris=stack, filename_prefix="sized", dtype="as stored", dialect="as stored")
        .args
    )
    assert 0.97e6 < Path(path).stat().st_size <= 1.0e6
    assert all("attn" in name and "to_v" not in name for name in stack[0].adapters)
    assert "left out by the patterns" in report


def test_from_models_with_their_patches(extract: Any, apply: Any, sd15: tuple[Any, Any]) -> None:
    """Of a stack whose adapters depend on the weight, too."""
    model, clip = sd15
    query, conv = (tiny.parameter(model, key) for key in (QUERY, CONV))
    text = tiny.parameter(clip.patcher, TEXT)
    query_layer, conv_layer = f"{BLOCK}_attn1_to_q", "lora_unet_down_blocks_0_resnets_0_conv1"
    text_layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    first = apply.stack({query_layer: tiny.make("lokr", query), conv_layer: tiny.make("lora", conv)}, 0.8)
    second = apply.stack({query_layer: tiny.make("oft", query), text_layer: tiny.make("lora", text)})
    patched, patched_clip, _ = apply(model, first, second, clip=clip)

    stack, report = extract(
        "ExtractLyCORISFromModels",
        base_model=model,
        tuned_model=patched,
        base_clip=clip,
        tuned_clip=patched_clip,
        algorithm="full",
        dtype="fp32",
    )
    assert set(stack[0].adapters) == {query_layer, conv_layer, text_layer}
    again, again_clip, _ = apply(model, stack, clip=clip)
    for one, other in ((patched, again), (patched_clip.patcher, again_clip.patcher)):
        keys = (TEXT,) if one is patched_clip.patcher else (QUERY, CONV)
        for now, then in zip(weights(one, keys), weights(other, keys), strict=True):
            torch.testing.assert_close(now, then, rtol=2e-3, atol=1e-4)
    assert "3 layers" in report
    # The models are as they were, and the other way round it is the opposite.
    back, _ = extract(
        "ExtractLyCORISFromModels", base_model=patched, tuned_model=model, algorithm="full", dtype="fp32"
    )
    forth, opposite = (own[0].adapters[query_layer].delta(tuple(query.shape)) for own in (stack, back))
    torch.testing.assert_close(forth, -opposite)


def test_a_loaded_model_is_asked_for_its_own_weights(extract: Any, apply: Any, sd15: tuple[Any, Any]) -> None:
    """While its patches are in its weights."""
    model, _ = sd15
    query = tiny.parameter(model, QUERY).float().clone()
    patched, _, _ = apply(model, apply.stack({f"{BLOCK}_attn1_to_q": tiny.make("lora", query)}))
    inputs = {"base_model": model, "tuned_model": patched, "algorithm": "full", "dtype": "fp32"}
    before, _ = extract("ExtractLyCORISFromModels", **inputs)
    with tiny.loaded(patched):
        during, _ = extract("ExtractLyCORISFromModels", **inputs)
    (name,) = before[0].adapters
    shape = tuple(query.shape)
    assert torch.equal(before[0].adapters[name].delta(shape), during[0].adapters[name].delta(shape))


def test_fused_weights_of_a_loaded_model(extract: Any, apply: Any, sd3: Any) -> None:
    key = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    weight = tiny.parameter(sd3, key)
    layer = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    patched, _, _ = apply(sd3, apply.stack({layer: tiny.make("lora", weight)}))
    stack, _ = extract("ExtractLyCORISFromModels", base_model=sd3, tuned_model=patched, algorithm="full")
    assert set(stack[0].adapters) == {"diffusion_model.joint_blocks.0.x_block.attn.qkv"}


def test_errors_are_for_the_person_at_the_graph(
    extract: Any, comfy_nodes: dict[str, Any], places: Path, sd15: tuple[Any, Any]
) -> None:
    node = comfy_nodes["ExtractLyCORIS"]
    with pytest.raises(Exception, match="nothing to extract") as same:
        extract(tuned=BASE)
    assert type(same.value).__name__ == BadValueError.__name__
    with pytest.raises(Exception, match=r"Stable Diffusion 1 or 2.*Wan") as other:
        extract(tuned="diffusion_models/tiny_wan.safetensors")
    assert type(other.value).__name__ == NoMatchError.__name__
    assert "not there any more" in node.validate_inputs(BASE, "checkpoints/gone.safetensors")
    assert "not there any more" in node.validate_inputs("checkpoints/gone.safetensors", TUNED)
    assert node.validate_inputs(BASE, TUNED) is True
    with pytest.raises(Exception, match="nothing to extract"):
        extract("ExtractLyCORISFromModels", base_model=sd15[0], tuned_model=sd15[0])


def test_a_retrained_file_is_seen(comfy_nodes: dict[str, Any], places: Path) -> None:
    node = comfy_nodes["ExtractLyCORIS"]
    copy = places / "checkpoints" / "copy.safetensors"
    shutil.copy(paths.MODELS / models.FILES["tuned_sd15"][0], copy)
    name = "checkpoints/copy.safetensors"
    first = node.fingerprint_inputs(base=BASE, tuned=name, algorithm="lora")
    assert node.fingerprint_inputs(base=BASE, tuned=name, algorithm="lora") == first
    save_file({"a": torch.zeros(3)}, copy)
    assert node.fingerprint_inputs(base=BASE, tuned=name, algorithm="lora") != first


def test_the_stop_button(extract: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    seen: list[int] = []

    def pressed() -> bool:
        seen.append(1)
        return len(seen) > 3

    monkeypatch.setattr(management, "processing_interrupted", pressed)
    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            extract()
    finally:
        management.interrupt_current_processing(False)
