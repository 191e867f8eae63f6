"""Adapters baked into files, against the live application of the same adapters in the real ComfyUI."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from folders import load_shards, save_pipeline, save_shards
from lab import models, paths
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lycoris_algos.models.unet import unet_names

UNET = "model.diffusion_model."
BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
INSIDE = "input_blocks.1.1.transformer_blocks.0"
#: Layers of tiny_sd15 of every kind: {name in a file: key of the weight in the diffusion model}.
LAYERS = {
    f"{BLOCK}_attn1_to_q": f"{INSIDE}.attn1.to_q.weight",
    f"{BLOCK}_attn2_to_k": f"{INSIDE}.attn2.to_k.weight",
    f"{BLOCK}_ff_net_0_proj": f"{INSIDE}.ff.net.0.proj.weight",
    "lora_unet_down_blocks_0_attentions_0_proj_in": "input_blocks.1.1.proj_in.weight",
    "lora_unet_down_blocks_0_resnets_0_conv1": "input_blocks.1.0.in_layers.2.weight",
    "lora_unet_mid_block_resnets_1_conv2": "middle_block.2.out_layers.3.weight",
}
NORMS = {f"{BLOCK}_norm1": f"{INSIDE}.norm1.weight", "lora_unet_conv_norm_out": "out.0.weight"}
ALGOS = ("lora", "loha", "lokr", "full", "norm", "dora", "glora", "ia3", "oft", "boft", "tlora")


def link(bases: Path, name: str) -> str:
    """The lab's model ``name`` in the folders; as the node lists it."""
    models.ensure([name])
    (file,) = models.FILES[name]
    (bases / file).symlink_to(paths.MODELS / file)
    return file


def file_for(algo: str, model: Any, layers: dict[str, str], seed: str = "") -> dict[str, tiny.Tensors]:
    """A file of ``algo`` for those layers that it can have."""
    found = {}
    for name, key in layers.items():
        weight = tiny.parameter(model, f"diffusion_model.{key}")
        fits = {
            "tlora": weight[:1].numel() == (weight.shape[1] if weight.dim() > 1 else 1),
            "boft": weight.shape[0] % 64 == 0,
        }
        if fits.get(algo, True):
            found[name] = tiny.make(algo, weight, name + seed)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="no such file names there")
def test_a_base_whose_name_would_be_html_in_the_list(bases: Path, comfy_nodes: dict[str, Any]) -> None:
    name = "<img src=x onerror=alert(1)>.safetensors"
    save_file({"a": torch.zeros(1)}, bases / "checkpoints" / name)
    node = comfy_nodes["MergeLyCORIS"]
    (combo,) = (item for item in node.define_schema().inputs if item.id == "base")
    assert combo.options == [f"checkpoints/{name.replace('<', '‹')}"]
    assert node.validate_inputs(combo.options[0]) is True
    assert node.validate_inputs(f"checkpoints/{name}") is True


@pytest.mark.parametrize("algo", ALGOS)
def test_a_baked_unet_has_the_live_weights_bit_for_bit(
    algo: str, sd15: tuple[Any, Any], apply: Any, bases: Path, unet: Path, bake: Any
) -> None:
    model, _ = sd15
    (bases / "checkpoints" / "unet.safetensors").symlink_to(unet)
    layers = NORMS if algo == "norm" else LAYERS
    stack = apply.stack(file_for(algo, model, layers), 0.8)

    path, report = bake("checkpoints/unet.safetensors", stack, strength_model=-0.7)
    patched, _, _ = apply(model, stack, strength=-0.7)

    baked = load_file(path)
    changed = 0
    with tiny.loaded(patched) as live:
        for key, weight in baked.items():
            now = live(key.removeprefix("model."))
            assert now.dtype == weight.dtype == torch.float32
            assert torch.equal(now, weight), key
            changed += not torch.equal(weight, tiny.parameter(model, key.removeprefix("model.")).float())
    assert path.parent.name == "checkpoints"
    assert "difference is 0," in report


@pytest.mark.parametrize("save_dtype", ["as base", "bf16"])
def test_other_dtypes_are_the_live_weights_rounded_once(
    save_dtype: str, sd15: tuple[Any, Any], apply: Any, bases: Path, unet: Path, bake: Any
) -> None:
    model, _ = sd15
    (bases / "checkpoints" / "unet.safetensors").symlink_to(unet)
    stacks = [apply.stack(file_for(algo, model, LAYERS, algo), 0.5) for algo in ("loha", "lokr", "lora")]
    stack = tuple(entry for own in stacks for entry in own)

    path, _ = bake("checkpoints/unet.safetensors", stack, save_dtype=save_dtype)
    patched, _, _ = apply(model, *stacks)

    dtype = torch.float16 if save_dtype == "as base" else torch.bfloat16
    with tiny.loaded(patched) as live:
        for key, weight in load_file(path).items():
            assert weight.dtype == dtype
            assert torch.equal(live(key.removeprefix("model.")).to(dtype), weight), key


@pytest.mark.parametrize("algo", ["lora", "dora", "oft", "glora", "full"])
@pytest.mark.parametrize("name", ["tiny_sd3", "tiny_wan", "tiny_hyvid"])
def test_every_name_of_core_bakes_as_it_is_applied(
    name: str, algo: str, load: Any, apply: Any, bases: Path, bake: Any
) -> None:
    """Also layers that are a part of a fused weight, and those with swapped halves."""
    import comfy.lora

    model, _ = load(name)
    base = link(bases, name)
    layers: dict[str, tiny.Tensors] = {}
    taken: dict[str, set[Any]] = {}
    parameters = model.model.state_dict()
    for layer, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        key = target if isinstance(target, str) else target[0]
        if key not in parameters:  # core names layers that only some models of the family have
            continue
        weight = parameters[key]
        if not isinstance(target, str) and target[1] is not None:
            weight = weight.narrow(*target[1])
        # One name for each target: a weight is changed as a whole or in parts, as the first name has it.
        part = None if isinstance(target, str) else target[1]
        others = taken.get(key, set())
        if weight.dim() < 2 or weight.shape[0] % 4 or part in others or (others and None in {part, *others}):
            continue
        if layer.startswith(("transformer.", "lora_unet_", "diffusion_model.")):
            taken.setdefault(key, set()).add(part)
            layers[layer] = tiny.make(algo, weight, layer)
    stack = apply.stack(layers)

    path, report = bake(base, stack)
    patched, _, live_report = apply(model, stack)

    assert f"{len(layers)} of {len(layers)} layers applied" in live_report
    assert f"{len(layers)} of {len(layers)} layers" in report, report
    with tiny.loaded(patched) as live:
        for key, weight in load_file(path).items():
            assert torch.equal(live(f"diffusion_model.{key}").float(), weight.float()), key


@pytest.mark.parametrize("algo", ["lora", "loha", "dora", "tlora"])
def test_a_layer_in_pieces_bakes_as_it_is_applied(
    algo: str, load: Any, apply: Any, bases: Path, bake: Any
) -> None:
    """One adapter for what the model stores as queries, keys and values; T-LoRA starts from all of them."""
    model, _ = load("tiny_wan")
    base = link(bases, "tiny_wan")
    layers = {f"lora_unet_blocks_{n}_self_attn_qkv": tiny.make(algo, qkv(model, n), str(n)) for n in (0, 1)}
    stack = apply.stack(layers, 0.8)

    path, report = bake(base, stack)
    patched, _, _ = apply(model, stack)

    assert "2 of 2 layers" in report
    with tiny.loaded(patched) as live:
        for key, weight in load_file(path).items():
            assert torch.equal(live(f"diffusion_model.{key}").float(), weight.float()), key


@pytest.mark.parametrize("algo", ["boft", "dora over rows"])
def test_what_a_patch_cannot_see_is_baked_into_all_pieces(
    algo: str, load: Any, apply: Any, bases: Path, bake: Any
) -> None:
    model, _ = load("tiny_wan")
    base = link(bases, "tiny_wan")
    weight = qkv(model, 0).float()
    tensors = tiny.make("boft" if algo == "boft" else "lora", weight)
    if algo != "boft":
        tensors["dora_scale"] = weight.norm(dim=0, keepdim=True) * 1.2

    path, report = bake(base, apply.stack({"lora_unet_blocks_0_self_attn_qkv": tensors}, 0.8))

    assert "1 of 1 layers" in report
    baked = load_file(path)
    found = torch.cat([baked[f"blocks.0.self_attn.{part}.weight"] for part in "qkv"])
    tiny.assert_weight(found, tiny.changed(weight, (tensors, 0.8)), algo, steps=40)


def qkv(model: Any, block: int) -> Tensor:
    """The weight of queries, keys and values of tiny_wan together."""
    path = f"diffusion_model.blocks.{block}.self_attn"
    return torch.cat([tiny.parameter(model, f"{path}.{part}.weight") for part in "qkv"])


def test_a_text_encoder_is_a_base_of_its_own(sd15: Any, apply: Any, bases: Path, bake: Any) -> None:
    base = link(bases, "clip_l")
    weights = load_file(bases / base)
    key = "text_model.encoder.layers.3.self_attn.q_proj.weight"
    layer = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
    tensors = tiny.make("lokr", weights[key])
    layers = {layer: tensors, f"{BLOCK}_attn1_to_q": tiny.make("lora", torch.zeros(320, 320))}

    path, report = bake(base, apply.stack(layers), strength_clip=0.5)

    baked = load_file(path)
    tiny.assert_weight(baked[key], tiny.changed(weights[key], (tensors, 0.5)), steps=4)
    assert all(torch.equal(baked[k].to(w.dtype), w) for k, w in weights.items() if k != key)
    assert "1 diffusion model layers are left out" in report
    assert path.parent.name == "clip"


def test_the_new_file_is_listed_and_says_how_it_was_made(
    sd15: Any, apply: Any, bases: Path, unet: Path, bake: Any
) -> None:
    import folder_paths

    model, _ = sd15
    (bases / "checkpoints" / "unet.safetensors").symlink_to(unet)
    stack = apply.stack(file_for("lora", model, LAYERS))

    path, report = bake("checkpoints/unet.safetensors", stack, filename_prefix="../../a/b:c")
    again, _ = bake("checkpoints/unet.safetensors", stack, filename_prefix="../../a/b:c")

    folder_paths.filename_list_cache.pop("checkpoints", None)
    assert {"a/bc.safetensors", "a/bc_00002.safetensors"} <= set(
        folder_paths.get_filename_list("checkpoints")
    )
    assert again != path
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["lycoris_algos.bake"])
    assert metadata["modelspec.title"] == "tiny"
    assert recipe["base"]["file"] == "checkpoints/unet.safetensors"
    assert [entry["file"] for entry in recipe["adapters"]] == [stack[0].adapters.name]
    assert f"{len(LAYERS)} of {len(LAYERS)} layers" in report


def test_a_file_for_another_model_is_refused(
    sd15: Any, apply: Any, bases: Path, unet: Path, bake: Any
) -> None:
    (bases / "checkpoints" / "unet.safetensors").symlink_to(unet)
    stranger = {"lora_unet_double_blocks_0_img_attn_qkv": tiny.make("lora", torch.zeros(96, 32))}
    mixed = {**stranger, **file_for("lora", sd15[0], LAYERS)}

    with pytest.raises(Exception, match="none of the 1 layers") as error:
        bake("checkpoints/unet.safetensors", apply.stack(stranger))
    with pytest.raises(Exception, match="1 entries of"):
        bake(
            "checkpoints/unet.safetensors", apply.stack(mixed), on_unmatched="error if anything is unmatched"
        )
    _, report = bake("checkpoints/unet.safetensors", apply.stack(stranger), on_unmatched="report only")

    assert "a diffusion model" in str(error.value)
    assert "lora_unet_double_blocks_0_img_attn_qkv: the file's diffusion model has no such layer" in report


def test_weights_that_do_not_fit_stop_the_run_or_are_named(
    sd15: Any, apply: Any, bases: Path, unet: Path, bake: Any, output: Path, comfy_nodes: Any
) -> None:
    key = f"{UNET}{INSIDE}.attn1.to_k.weight"
    tensors = {name: tensor.float() for name, tensor in load_file(unet).items()}
    tensors[key][0, 0] = 1e5
    save_file(tensors, bases / "checkpoints" / "large.safetensors")
    stack = apply.stack(file_for("lora", sd15[0], LAYERS))
    with pytest.raises(Exception, match="beyond the largest number of float16") as error:
        bake("checkpoints/large.safetensors", stack, save_dtype="fp16")
    assert key in str(error.value)
    assert [path for path in output.rglob("*") if path.is_file()] == []

    path, report = bake("checkpoints/large.safetensors", stack, save_dtype="fp16", on_overflow="report only")
    assert key in report
    assert int(load_file(path)[key].isinf().sum()) == 1
    *_, choice, last = comfy_nodes["MergeLyCORIS"].define_schema().inputs
    assert (choice.id, choice.optional, choice.default) == ("on_overflow", True, "error")
    assert (last.id, last.optional, last.default) == ("multipliers", True, "")


def test_a_deleted_file_is_made_again(
    sd15: Any, apply: Any, bases: Path, unet: Path, bake: Any, comfy_nodes: Any
) -> None:
    (bases / "checkpoints" / "unet.safetensors").symlink_to(unet)
    widgets = {
        "base": "checkpoints/unet.safetensors",
        "strength_model": 1.0,
        "strength_clip": 1.0,
        "save_dtype": "as base",
        "filename_prefix": "again",
        "on_unmatched": "report only",
    }
    options = {name: value for name, value in widgets.items() if name != "base"}
    path, _ = bake(widgets["base"], apply.stack(file_for("lora", sd15[0], LAYERS)), **options)
    node = comfy_nodes["MergeLyCORIS"]

    before = node.fingerprint_inputs(**widgets)
    assert node.fingerprint_inputs(**widgets) == before
    path.unlink()

    assert node.fingerprint_inputs(**widgets) != before
    assert node.validate_inputs("checkpoints/gone.safetensors") is not True
    assert node.validate_inputs(widgets["base"]) is True


def test_stop_ends_the_run_and_leaves_nothing(
    sd15: Any, apply: Any, bases: Path, unet: Path, bake: Any, output: Path
) -> None:
    import comfy.model_management

    (bases / "checkpoints" / "unet.safetensors").symlink_to(unet)
    stack = apply.stack(file_for("lora", sd15[0], LAYERS))
    comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        bake("checkpoints/unet.safetensors", stack)

    assert [path for path in output.rglob("*") if path.is_file()] == []


# ---- bases of several files -----------------------------------------------------------------------------


def base_options(comfy_nodes: dict[str, Any]) -> list[str]:
    schema = comfy_nodes["MergeLyCORIS"].define_schema()
    return next(item.options for item in schema.inputs if item.id == "base")


@pytest.fixture
def pipelines(bases: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``diffusers``, which is empty."""
    import folder_paths

    own = bases / "diffusers"
    own.mkdir()
    _, extensions = folder_paths.folder_names_and_paths["diffusers"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(own)], extensions))
    return own


@pytest.mark.parametrize("kind", ["shards", "diffusers"])
def test_a_base_of_several_files_becomes_a_folder_with_the_live_weights(
    kind: str,
    sd15: tuple[Any, Any],
    apply: Any,
    pipelines: Path,
    unet: Path,
    bake: Any,
    output: Path,
    comfy_nodes: dict[str, Any],
) -> None:
    model, _ = sd15
    tensors = load_file(unet)
    called = {key: key for key in tensors}
    if kind == "shards":
        folder = pipelines.parent / "diffusion_models" / "big"
        folder.mkdir()
        save_shards(folder, tensors)
        name = "diffusion_models/big/model-00001-of-00003.safetensors"
    else:
        paths_of = unet_names([key.removeprefix(UNET) for key in tensors])
        called = {f"{path}.weight": UNET + key for path, key in paths_of}
        folder = save_pipeline(
            pipelines / "sd15", {"unet": {key: tensors[own] for key, own in called.items()}}
        )
        name = "diffusers/sd15"
    assert base_options(comfy_nodes) == [name]
    widgets = (name, 1.0, 1.0, "fp32", "merged", "report only")
    node = comfy_nodes["MergeLyCORIS"]
    before = node.fingerprint_inputs(*widgets)
    assert node.validate_inputs(name) is True
    assert node.validate_inputs("diffusers/../sd15") is not True
    stack = apply.stack(file_for("lokr", model, LAYERS))

    path, report = bake(name, stack)
    patched, _, _ = apply(model, stack)

    assert path == output / name.split("/")[0] / "merged"
    assert f"{len(LAYERS)} of {len(LAYERS)} layers" in report
    baked = load_shards(path if kind == "shards" else path / "unet")
    assert baked.keys() == called.keys()
    with tiny.loaded(patched) as live:
        for key, weight in baked.items():
            assert torch.equal(live(called[key].removeprefix("model.")), weight), key
    save_shards(folder if kind == "shards" else folder / "unet", {key: torch.ones(1) for key in "abc"})
    assert node.fingerprint_inputs(*widgets) != before
