"""Combine LyCORIS and Save LyCORIS in the real ComfyUI: against the live stack, into files, on a cancel."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

import lycoris_algos

TO_Q, TO_Q_KEY = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
)
CONV_IN, CONV_IN_KEY = "lora_unet_conv_in", "diffusion_model.input_blocks.0.0.weight"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture
def save(comfy_nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Save LyCORIS: (path, report)."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))

    def call(
        stack: Any, prefix: str = "x", dtype: str = "as stored", dialect: str = "as stored", **more: Any
    ) -> Any:
        path, report = comfy_nodes["SaveLyCORIS"].execute(stack, prefix, dtype, dialect, **more).args
        return Path(path), report

    return call


#: Where saved workflows have their values: ids, defaults and ranges in this order.
WIDGETS = [
    ("method", "sum", None, None),
    ("density", 0.5, 0.01, 1.0),
    ("lambda", 1.0, -100.0, 100.0),
    ("epsilon", 0.2, 0.0, 0.99),
    ("gamma", 0.01, 0.0, 0.99),
    ("seed", 0, 0, 2**53),
    ("output", "same", None, None),
    ("rank_control", "exact", None, None),
    ("rank", 32, 1, 4096),
    ("threshold", 0.95, 0.0, 100000.0),
    ("budget_mb", 100.0, 0.01, 100000.0),
    ("dtype", "as stored", None, None),
    ("lokr_factor", 0, -1, 1024),
    ("live_order", False, None, None),
    ("base", "none", None, None),
    ("max_rank", 0, 0, 4096),
    ("conv_rank", 0, 0, 4096),
]


def test_widgets_stay_where_saved_workflows_have_them(comfy_nodes: dict[str, Any]) -> None:
    told = comfy_nodes["CombineLyCORIS"].GET_NODE_INFO_V1()["input"]
    found = [
        (name, options["default"], options.get("min"), options.get("max"))
        for name, (_, options) in (told["required"] | told["optional"]).items()
        if "default" in options
    ]
    assert found[: len(WIDGETS)] == WIDGETS
    assert not told["required"]["seed"][1]["control_after_generate"]  # it would be a widget more


def test_a_new_merge_method_is_in_the_node(comfy_nodes: dict[str, Any], pack: ModuleType) -> None:
    name = f"{pack.__name__}.lycoris_algos.merge.combine.methods"
    methods, registry = sys.modules[name], sys.modules[f"{name}._registry"]

    def half(weights: Any, present: Any, *, gamma: float) -> Any:
        raise NotImplementedError

    methods.method("half", methods.Kind.WEIGHTS, "Half of it.")(half)
    try:
        inputs = {item.id: item for item in comfy_nodes["CombineLyCORIS"].define_schema().inputs}
    finally:
        del registry._METHODS["half"]
    assert inputs["method"].options == [*methods.METHODS, "half"]
    assert "half: Half of it." in inputs["method"].tooltip
    assert inputs["gamma"].tooltip.startswith("breadcrumbs and half: ")


def weights_after(model: Any, keys: tuple[str, ...]) -> dict[str, torch.Tensor]:
    with tiny.loaded(model) as weight:
        return {key: weight(key).float() for key in keys}


def two_files(model: Any, apply: Any, *algos: str) -> Any:
    """A stack of files that change both layers."""
    stacks = [
        apply.stack(
            {
                name: tiny.make(algo, tiny.parameter(model, key))
                for name, key in ((TO_Q, TO_Q_KEY), (CONV_IN, CONV_IN_KEY))
            },
            strength,
        )
        for algo, strength in zip(algos, (0.8, 0.5), strict=False)
    ]
    return tuple(entry for stack in stacks for entry in stack)


@pytest.mark.parametrize("algos", [("lora", "loha"), ("lokr", "lora"), ("lora", "lora")])
def test_the_sum_is_the_live_stack(sd15: Any, apply: Any, combine: Any, algos: tuple[str, ...]) -> None:
    model = sd15[0]
    stack = two_files(model, apply, *algos)
    combined, report = combine(stack, model=model)
    live = weights_after(apply(model, stack)[0], (TO_Q_KEY, CONV_IN_KEY))
    ours = weights_after(apply(model, combined)[0], (TO_Q_KEY, CONV_IN_KEY))
    plain = weights_after(model, (TO_Q_KEY, CONV_IN_KEY))
    for key, weight in live.items():
        change = (weight - plain[key]).abs().max()
        assert change > 0
        assert (ours[key] - weight).abs().max() < 1e-5 * change + 1e-6
    assert "against the live stack" in report
    assert len(combined) == 1


def test_dora_needs_the_model_and_gets_it(sd15: Any, apply: Any, combine: Any) -> None:
    model = sd15[0]
    weight = tiny.parameter(model, TO_Q_KEY)
    dora = {**tiny.make("lora", weight), "dora_scale": weight.float().norm(dim=1, keepdim=True) * 1.1}
    stack = apply.stack({TO_Q: dora}, 0.7)
    with pytest.raises(Exception, match="give the base model"):
        combine(stack)
    combined, _ = combine(stack, model=model, output="lora")
    live = weights_after(apply(model, stack)[0], (TO_Q_KEY,))[TO_Q_KEY]
    ours = weights_after(apply(model, combined)[0], (TO_Q_KEY,))[TO_Q_KEY]
    change = (live - weights_after(model, (TO_Q_KEY,))[TO_Q_KEY]).abs().max()
    assert (ours - live).abs().max() < 1e-4 * change


def test_a_base_file_is_as_good_as_the_model(
    sd15: Any, apply: Any, combine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths
    from lab import paths

    model, clip = sd15
    text_key = next(
        key for key in clip.cond_stage_model.state_dict() if key.endswith("layers.0.self_attn.q_proj.weight")
    )
    layers = {}
    for name, weight in (
        (TO_Q, tiny.parameter(model, TO_Q_KEY)),
        (CONV_IN, tiny.parameter(model, CONV_IN_KEY)),
        (TEXT, tiny.parameter(clip.patcher, text_key)),
    ):
        norm = weight.float().flatten(1).norm(dim=1).reshape(-1, *(1 for _ in weight.shape[1:]))
        layers[name] = {**tiny.make("lora", weight), "dora_scale": norm * 1.1}
    stack = apply.stack(layers, 0.7)
    loaded, _ = combine(stack, model=model, clip=clip)
    file = next(path for path in paths.MODELS.rglob("tiny_sd15*.safetensors"))
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "checkpoints", ([str(file.parent)], {".safetensors"}))
    read, _ = combine(stack, base=f"checkpoints/{file.name}")
    for name, layer in loaded[0].adapters.items():
        shape = layer.extras[0].change.shape
        assert torch.allclose(read[0].adapters[name].delta(shape), layer.delta(shape), atol=1e-6), name


def test_the_recipe_names_files_and_models(
    sd15: Any, apply: Any, combine: Any, save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths
    from lab import paths

    model, clip = sd15
    stack = two_files(model, apply, "lora", "loha")
    hashes = [lycoris_algos_of(stack).network.content_hash(entry.adapters) for entry in stack]

    def recipe(**base: Any) -> Any:
        path, _ = save(combine(stack, **base)[0])
        metadata = lycoris_algos.load(path).metadata
        return json.loads(metadata["lycoris_algos.recipe"])["source"]["recipe"]

    loaded = recipe(model=model, clip=clip)
    assert [source["tensors_sha256"] for source in loaded["sources"]] == hashes
    assert loaded["base"] == {"model": "SD15", "clip": "text encoder SD1ClipModel"}
    file = next(path for path in paths.MODELS.rglob("tiny_sd15*.safetensors"))
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "checkpoints", ([str(file.parent)], {".safetensors"}))
    read = recipe(base=f"checkpoints/{file.name}")
    assert read["base"]["file"] == file.name
    assert len(read["base"]["sampled_sha256"]) == 64
    assert "base" not in recipe()


@pytest.mark.parametrize("method", ["average", "ties", "dare", "slerp", "knots", "project off"])
@pytest.mark.parametrize("output", ["lora", "lokr", "loha"])
def test_other_methods_and_forms_give_something_that_applies(
    sd15: Any, apply: Any, combine: Any, method: str, output: str
) -> None:
    model = sd15[0]
    stack = two_files(model, apply, "lora", "lokr")
    combined, report = combine(stack, method=method, output=output, rank_control="fixed rank", rank=4)
    assert "2 of 2 layers applied" in apply(model, combined)[2]
    assert "keeps" in report


def test_files_of_two_dialects_meet_in_the_model(sd15: Any, apply: Any, combine: Any) -> None:
    model = sd15[0]
    tensors = tiny.make("lora", tiny.parameter(model, TO_Q_KEY))
    native = TO_Q_KEY.removesuffix(".weight")
    stack = (*apply.stack({TO_Q: tensors}), *apply.stack({native: tensors}))
    assert len(combine(stack)[0][0].adapters) == 2
    combined, _ = combine(stack, model=model)
    assert len(combined[0].adapters) == 1


@pytest.mark.parametrize("layer", ["text_model_encoder_layers_0", "encoder_layers_0"])
@pytest.mark.parametrize("given", ["nothing", "clip", "model and clip", "base"])
def test_the_wrappers_text_layers_take_the_clips_strength(
    given: str, layer: str, sd15: Any, apply: Any, combine: Any, save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the layer is in the CLIP or the file, and by its name where that tells."""
    import folder_paths
    from lab import paths

    model, clip = sd15
    text = f"lycoris_{layer}_self_attn_q_proj"
    tensors = tiny.make("lora", torch.ones(768, 768))
    (entry,) = apply.stack({text: tensors})
    stack = (replace(entry, strength_model=1.0, strength_clip=0.25),)
    file = next(path for path in paths.MODELS.rglob("tiny_sd15*.safetensors"))
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "checkpoints", ([str(file.parent)], {".safetensors"}))
    wired: dict[str, Any] = {
        "nothing": {},
        "clip": {"clip": clip},
        "model and clip": {"model": model, "clip": clip},
        "base": {"base": f"checkpoints/{file.name}"},
    }[given]
    expected = 1.0 if given == "nothing" and layer == "encoder_layers_0" else 0.25
    delta = lycoris_algos.LayerAdapter.from_tensors(tensors).delta((768, 768))

    combined, _ = combine(stack, **wired)
    assert torch.allclose(combined[0].adapters[text].delta((768, 768)), expected * delta, atol=1e-6)
    if given != "base":
        path, _ = save(stack, **wired)
        assert torch.allclose(lycoris_algos.load(path)[text].delta((768, 768)), expected * delta, atol=1e-6)


def test_every_strength_at_0_changes_nothing(sd15: Any, apply: Any, combine: Any) -> None:
    stack = apply.stack({TO_Q: tiny.make("lora", tiny.parameter(sd15[0], TO_Q_KEY))}, 0.0)
    combined, report = combine(stack)
    assert apply(sd15[0], combined)[0].patches == {}
    assert "every strength is 0" in report


def test_a_cancel_ends_the_run_as_comfyui_expects(sd15: Any, apply: Any, combine: Any) -> None:
    import comfy.model_management

    stack = two_files(sd15[0], apply, "lora", "loha")
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            combine(stack)
    finally:
        comfy.model_management.interrupt_current_processing(False)


# ---- files ----------------------------------------------------------------------------------------------


def test_a_saved_file_does_what_the_stack_did(sd15: Any, apply: Any, combine: Any, save: Any) -> None:
    model = sd15[0]
    combined, _ = combine(two_files(model, apply, "lora", "lokr"), model=model)
    path, report = save(combined, "folder/mine")
    assert path.parts[-3:] == ("loras", "folder", "mine.safetensors")
    assert str(path) in report
    back = lycoris_algos.load(path)
    for name, layer in back.items():
        shape = tiny.parameter(model, {TO_Q: TO_Q_KEY, CONV_IN: CONV_IN_KEY}[name]).shape
        assert torch.equal(layer.delta(shape), combined[0].adapters[name].delta(shape))
    again, _ = save(combined, "folder/mine")
    assert again.name == "mine_00002.safetensors"


@pytest.mark.parametrize(
    "prefix",
    ["../../evil", "/etc/evil", "..\\..\\evil", "C:\\evil", "a/../../../evil", "", "...", "con", "a\0b"],
)
def test_no_name_leaves_the_folder(sd15: Any, apply: Any, save: Any, prefix: str, tmp_path: Path) -> None:
    stack = apply.stack({TO_Q: tiny.make("lora", tiny.parameter(sd15[0], TO_Q_KEY))})
    path, _ = save(stack, prefix)
    assert (tmp_path / "output" / "loras").resolve() in path.resolve().parents
    assert path.suffix == ".safetensors"


def test_a_deleted_file_is_made_again(sd15: Any, apply: Any, save: Any, comfy_nodes: dict[str, Any]) -> None:
    node = comfy_nodes["SaveLyCORIS"]
    widgets = {"filename_prefix": "again", "dtype": "fp16", "dialect": "kohya", "include_embeddings": True}
    stack = apply.stack({TO_Q: tiny.make("lora", tiny.parameter(sd15[0], TO_Q_KEY))})
    before = node.fingerprint_inputs(**widgets)
    path, _ = save(stack, "again", "fp16", "kohya")
    assert node.fingerprint_inputs(**widgets) == before
    path.unlink()
    changed = node.fingerprint_inputs(**widgets)
    assert changed != before
    save(stack, "again", "fp16", "kohya")
    assert node.fingerprint_inputs(**widgets) == changed


def test_a_strength_is_written_into_the_file_or_refused(sd15: Any, apply: Any, save: Any) -> None:
    model = sd15[0]
    weight = tiny.parameter(model, TO_Q_KEY)
    tensors = tiny.make("lora", weight)
    path, report = save(apply.stack({TO_Q: tensors}, 0.5), dtype="fp32")
    wanted = 0.5 * lycoris_algos.LayerAdapter.from_tensors(tensors).delta(weight.shape)
    assert torch.allclose(lycoris_algos.load(path)[TO_Q].delta(weight.shape), wanted, atol=1e-6)
    assert "apply it at 1" in report
    dora = {**tensors, "dora_scale": weight.float().norm(dim=1, keepdim=True)}
    with pytest.raises(Exception, match="CombineLyCORIS"):
        save(apply.stack({TO_Q: dora}, 0.5))
    with pytest.raises(Exception, match="CombineLyCORIS"):
        save((*apply.stack({TO_Q: tensors}), *apply.stack({TO_Q: tensors})))


@pytest.mark.parametrize(
    ("dialect", "layer", "text"),
    [
        ("ComfyUI", TO_Q_KEY.removesuffix(".weight"), "text_encoders.clip_l.transformer.text_model"),
        (
            "diffusers-PEFT",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            "text_encoder.",
        ),
        ("kohya", TO_Q, TEXT),
    ],
)
def test_the_model_tells_how_other_dialects_spell_a_layer(
    sd15: Any, apply: Any, save: Any, dialect: str, layer: str, text: str
) -> None:
    model, clip = sd15
    text_key = next(
        key for key in clip.cond_stage_model.state_dict() if key.endswith("layers.0.self_attn.q_proj.weight")
    )
    layers = {
        TO_Q: tiny.make("lora", tiny.parameter(model, TO_Q_KEY)),
        TEXT: tiny.make("lora", tiny.parameter(clip.patcher, text_key)),
    }
    stack = apply.stack(layers)
    path, _ = save(stack, dialect=dialect, model=model, clip=clip)
    names = set(lycoris_algos.load(path))
    assert layer in names
    assert any(name.startswith(text) for name in names)
    loader = sys.modules[type(stack[0]).__module__].StackEntry
    converted = (loader(lycoris_algos_of(stack).load(path)),)
    assert "2 of 2 layers applied" in apply(model, converted, clip=clip)[2]
    if dialect != "kohya":
        with pytest.raises(Exception, match="Give the model"):
            save(stack, dialect=dialect)


def lycoris_algos_of(stack: Any) -> ModuleType:
    """The pack's own copy of the library."""
    return sys.modules[type(stack[0].adapters).__module__.rsplit(".network", 1)[0]]
