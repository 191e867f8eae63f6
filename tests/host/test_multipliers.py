"""Multipliers block by block, in the real ComfyUI: live, baked and combined alike, for every algorithm."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
INSIDE = "input_blocks.1.1.transformer_blocks.0"
RULES = "input.1=0.5, attn.q=0, middle?=-1.5, ff=0.25, output?=3"
#: {name in a file: (key of the weight, what ``RULES`` give it)}.
LAYERS = {
    f"{BLOCK}_attn1_to_q": (f"{INSIDE}.attn1.to_q.weight", 0.0),
    f"{BLOCK}_attn2_to_k": (f"{INSIDE}.attn2.to_k.weight", 0.5),
    f"{BLOCK}_ff_net_0_proj": (f"{INSIDE}.ff.net.0.proj.weight", 0.25),
    "lora_unet_down_blocks_0_resnets_0_conv1": ("input_blocks.1.0.in_layers.2.weight", 0.5),
    "lora_unet_mid_block_resnets_1_conv2": ("middle_block.2.out_layers.3.weight", -1.5),
    "lora_unet_conv_in": ("input_blocks.0.0.weight", 1.0),
}
TEXT = "lora_te_text_model_encoder_layers_3_mlp_fc1"
TEXT_KEY = "clip_l.transformer.text_model.encoder.layers.3.mlp.fc1.weight"
ALGOS = ("lora", "loha", "lokr", "full", "dora", "glora", "ia3", "oft", "boft", "tlora")


def file_of(algo: str, model: Any) -> dict[str, tiny.Tensors]:
    """A file of ``algo`` for those of the layers that it can have."""
    made = {}
    for name, (key, _) in LAYERS.items():
        weight = tiny.parameter(model, f"diffusion_model.{key}")
        fits = {
            "tlora": weight[:1].numel() == (weight.shape[1] if weight.dim() > 1 else 1),
            "boft": weight.shape[0] % 64 == 0,
        }
        if fits.get(algo, True):
            made[name] = tiny.make(algo, weight, name)
    return made


def weights(patcher: Any) -> dict[str, torch.Tensor]:
    with tiny.loaded(patcher) as live:
        return {key: live(f"diffusion_model.{key}").clone() for key, _ in LAYERS.values()}


@pytest.mark.parametrize("algo", ALGOS)
def test_a_rule_is_a_factor_on_the_change_live_baked_and_combined_alike(
    algo: str, sd15: tuple[Any, Any], apply: Any, bases: Path, unet: Path, bake: Any, combine: Any
) -> None:
    model, _ = sd15
    file = file_of(algo, model)
    stack = apply.stack(file, 0.8)
    before = weights(model)

    patched, _, report = apply(model, stack, multipliers=RULES)
    live = weights(patched)
    for name, (key, multiplier) in LAYERS.items():
        if name not in file or multiplier == 0.0:
            assert torch.equal(live[key], before[key]), name
            assert f"diffusion_model.{key}" not in tiny.patches_of(patched)
        else:
            tiny.assert_weight(live[key], tiny.changed(before[key], (file[name], 0.8 * multiplier)), name, 32)
            assert not torch.equal(live[key], before[key]), name
    assert "multipliers input.1=0.5, attn.q=0" in report

    (bases / "checkpoints" / "unet.safetensors").symlink_to(unet)
    path, report = bake("checkpoints/unet.safetensors", stack, multipliers=RULES)
    baked = load_file(path)
    for key, weight in live.items():
        assert torch.equal(baked[f"model.diffusion_model.{key}"], weight), key
    assert "multipliers input.1=0.5" in report

    combined, report = combine(stack, model=model, multipliers=RULES, output="full")
    ours = weights(apply(model, combined)[0])
    for key, weight in live.items():
        change = (weight - before[key]).abs().max()
        assert (ours[key] - weight).abs().max() <= 1e-4 * change + 1e-6, key
    assert "multipliers input.1=0.5" in report


def test_rules_of_a_file_and_of_the_stack_both_count(
    sd15: tuple[Any, Any], apply: Any, load_node: Any, folders: Path
) -> None:
    model, _ = sd15
    file = file_of("lora", model)
    tiny.save(folders / "loras" / "own.safetensors", file)
    own, *_ = load_node.execute("own.safetensors", 1.0, 1.0, 0, "input.0=0.5, attn.q=0").args
    other = apply.stack(file)
    before, live = weights(model), weights(apply(model, own, other, multipliers="input.0=-1")[0])
    name = "lora_unet_conv_in"
    key = LAYERS[name][0]
    expected = tiny.changed(before[key], (file[name], -0.5), (file[name], -1.0))
    tiny.assert_weight(live[key], expected, name, 32)
    name = f"{BLOCK}_attn1_to_q"
    key = LAYERS[name][0]
    tiny.assert_weight(live[key], tiny.changed(before[key], (file[name], 1.0)), name, 32)


def test_a_text_encoder_has_blocks_too(sd15: tuple[Any, Any], apply: Any) -> None:
    model, clip = sd15
    weight = tiny.parameter(clip.patcher, TEXT_KEY)
    tensors = tiny.make("lora", weight)
    stack = apply.stack({TEXT: tensors, **file_of("lora", model)})
    _, patched, _ = apply(model, stack, clip=clip, multipliers="te.0-3=0.5")
    with tiny.loaded(patched.patcher) as live:
        tiny.assert_weight(live(TEXT_KEY), tiny.changed(weight, (tensors, 0.5)), TEXT, 32)
    _, patched, _ = apply(model, stack, clip=clip, multipliers="text=0")
    assert TEXT_KEY not in tiny.patches_of(patched.patcher)
    # A rule for what is not connected is no mistake.
    apply(model, stack, multipliers="te=0")


def test_a_rule_that_fits_nothing_is_named(sd15: tuple[Any, Any], apply: Any, combine: Any) -> None:
    model, _ = sd15
    stack = apply.stack(file_of("lora", model))
    for wrong in ("input.7=0", "double.0-9=0.5", "cross.v=0", "*norm*=2"):
        with pytest.raises(Exception, match=r"fits no layer of 'file_1\.safetensors'") as error:
            apply(model, stack, multipliers=f"input=1, {wrong}")
        assert wrong in str(error.value)
        assert "input.0-1" in str(error.value)
        with pytest.raises(Exception, match="fits no layer"):
            combine(stack, multipliers=wrong)
    assert not tiny.patches_of(model)


def test_a_list_of_numbers_is_read_by_the_models_blocks(sd15: tuple[Any, Any], apply: Any) -> None:
    model, _ = sd15
    file = file_of("lora", model)
    numbers = ["1", "0.25", *["1"] * 5, "-0.5", *["1"] * 9]
    before, live = weights(model), weights(apply(model, apply.stack(file), multipliers=",".join(numbers))[0])
    for name, (key, _) in LAYERS.items():
        multiplier = 1.0 if key.startswith("input_blocks.0") else 0.25 if key.startswith("input") else -0.5
        tiny.assert_weight(live[key], tiny.changed(before[key], (file[name], multiplier)), name, 32)


def test_presets_come_from_the_users_folder(
    sd15: tuple[Any, Any],
    apply: Any,
    comfy_nodes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path), raising=False)
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    node = comfy_nodes["ApplyLyCORISToModel"]
    missing = node.fingerprint_inputs(multipliers="soft")
    (tmp_path / "lycoris_multipliers.txt").write_text("# mine\nsoft: input=0.5, middle=0.25\n", "utf-8")
    assert node.fingerprint_inputs(multipliers="soft") != missing
    assert node.fingerprint_inputs(multipliers="") == node.fingerprint_inputs()
    model, _ = sd15
    file = file_of("lora", model)
    before, live = weights(model), weights(apply(model, apply.stack(file), multipliers="soft, input.0=2")[0])
    for name, (key, _) in LAYERS.items():
        multiplier = 2.0 if key.startswith("input_blocks.0") else 0.5 if key.startswith("input") else 0.25
        tiny.assert_weight(live[key], tiny.changed(before[key], (file[name], multiplier)), name, 32)
    with pytest.raises(Exception, match="presets are soft"):
        apply(model, apply.stack(file), multipliers="hard")


def test_a_saved_file_has_the_rules_in_it(
    sd15: tuple[Any, Any], apply: Any, pack: ModuleType, host: Any, tmp_path: Path
) -> None:
    model, _ = sd15
    file = file_of("lora", model)
    stack = host("multipliers").with_multipliers(apply.stack(file), RULES)
    written, report = host("combining").save_stack(
        stack, tmp_path / "x.safetensors", "as stored", "as stored", True
    )
    layers = {name for name, (_, multiplier) in LAYERS.items() if multiplier}
    assert {key.partition(".")[0] for key in load_file(written)} == layers
    assert "multipliers input.1=0.5" in report


def test_rules_that_leave_nothing(sd15: tuple[Any, Any], apply: Any, combine: Any) -> None:
    model, _ = sd15
    stack = apply.stack(file_of("lora", model))
    assert not tiny.patches_of(apply(model, stack, multipliers="*=0")[0])
    with pytest.raises(Exception, match="leaves nothing"):
        combine(stack, model=model, multipliers="*=0")
