"""ComfyUI's weight hooks with our patches, as its Create Hook LoRA makes them with its own."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

LAYER, KEY = "lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q.weight"


def hook_of(patched: Any, strength: float) -> Any:
    """A weight hook with the patches of a clone that our nodes have made."""
    import comfy.hooks

    hook = comfy.hooks.WeightHook(strength_model=strength, strength_clip=strength)
    hook.weights = tiny.patches_of(patched)
    hook.weights_clip = {}
    hook.need_weight_init = False
    return hook


def hooked(model: Any, *hooks: Any) -> tuple[Any, Any]:
    """(a loaded clone of ``model``, the hooks as a group), with the hooks registered and not yet applied."""
    import comfy.hooks
    import comfy.model_management

    group = comfy.hooks.HookGroup()
    for hook in hooks:
        group.add(hook)
    clone = model.clone()
    comfy.model_management.load_models_gpu([clone], force_full_load=True)
    clone.register_all_hook_patches(
        group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model), clone.model_options
    )
    return clone, group


@pytest.mark.parametrize("algo", ["lora", "lokr", "dora", "oft"])
def test_a_hook_at_two_strengths(algo: str, wan: Any, apply: Any) -> None:
    weight = tiny.parameter(wan, KEY).clone()
    tensors = tiny.make(algo, weight)
    patched, _, _ = apply.files(wan, {LAYER: tensors})

    for strength in (0.5, -1.2):
        clone, group = hooked(wan, hook_of(patched, strength))
        clone.patch_hooks(group)
        tiny.assert_weight(tiny.parameter(clone, KEY), tiny.changed(weight, (tensors, strength)), steps=4)
        clone.patch_hooks(None)
        assert torch.equal(tiny.parameter(clone, KEY), weight), "the weight is not restored"


def test_keyframes_scale_a_hook(wan: Any, apply: Any) -> None:
    import comfy.hooks

    weight = tiny.parameter(wan, KEY).clone()
    tensors = tiny.make("loha", weight)
    patched, _, _ = apply.files(wan, {LAYER: tensors})
    hook = hook_of(patched, 0.8)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.25, 0.5)):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hook.hook_keyframe = frames
    clone, group = hooked(wan, hook)
    frames.initialize_timesteps(wan.model)

    options = {"transformer_options": {"sample_sigmas": torch.tensor([1.0, 0.0])}}
    for sigma, expected in ((1.0, 0.8), (0.9, 0.8), (0.1, 0.2)):
        clone.prepare_hook_patches_current_keyframe(torch.tensor([sigma]), group, options)
        clone.apply_hooks(group)
        tiny.assert_weight(tiny.parameter(clone, KEY), tiny.changed(weight, (tensors, expected)))
    clone.patch_hooks(None)
    assert torch.equal(tiny.parameter(clone, KEY), weight)


def test_hooks_on_top_of_ordinary_patches(wan: Any, apply: Any) -> None:
    """A hook sees the weight as the nodes before it have made it."""
    weight = tiny.parameter(wan, KEY).clone()
    under, over = tiny.make("full", weight, "under"), tiny.make("dora", weight, "over")
    base, _, _ = apply.files(wan, {LAYER: under}, strength=0.5)
    patched, _, _ = apply.files(wan, {LAYER: over})

    clone, group = hooked(base, hook_of(patched, 0.7))
    clone.patch_hooks(group)

    tiny.assert_weight(tiny.parameter(clone, KEY), tiny.changed(weight, (under, 0.5), (over, 0.7)), steps=4)
    clone.patch_hooks(None)
    tiny.assert_weight(tiny.parameter(clone, KEY), tiny.changed(weight, (under, 0.5)))


def test_hooks_on_slices_and_reordered_weights(sd3: Any, apply: Any) -> None:
    qkv = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    adaln = "diffusion_model.final_layer.adaLN_modulation.1.weight"
    weights = {key: tiny.parameter(sd3, key).clone() for key in (qkv, adaln)}
    to_k, norm_out = tiny.make("lora", weights[qkv][128:256]), tiny.make("lora", weights[adaln])
    patched, _, _ = apply.files(
        sd3, {"transformer.transformer_blocks.0.attn.to_k": to_k, "transformer.norm_out.linear": norm_out}
    )

    clone, group = hooked(sd3, hook_of(patched, 0.6))
    clone.patch_hooks(group)

    tiny.assert_weight(tiny.parameter(clone, qkv)[128:256], tiny.changed(weights[qkv][128:256], (to_k, 0.6)))
    assert torch.equal(tiny.parameter(clone, qkv)[:128], weights[qkv][:128])
    delta = tiny.changed(weights[adaln], (norm_out, 0.6)) - weights[adaln].double()
    expected = weights[adaln].double() + torch.cat(delta.chunk(2)[::-1])
    tiny.assert_weight(tiny.parameter(clone, adaln), expected)


def test_hooks_on_a_text_encoder(sd15: tuple[Any, Any], apply: Any) -> None:
    import comfy.hooks
    import comfy.model_management

    model, clip = sd15
    key = "clip_l.transformer.text_model.encoder.layers.0.layer_norm1.weight"
    weight = tiny.parameter(clip.patcher, key).clone()
    tensors = tiny.make("norm", weight)
    layer = "lora_te_text_model_encoder_layers_0_layer_norm1"
    _, patched, _ = apply.files(model, {layer: tensors}, clip=clip)
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.5)
    hook.weights, hook.weights_clip = {}, tiny.patches_of(patched.patcher)
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    clone = clip.clone().patcher
    comfy.model_management.load_models_gpu([clone], force_full_load=True)

    clone.register_all_hook_patches(
        group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Clip), clone.model_options
    )
    clone.patch_hooks(group)

    tiny.assert_weight(tiny.parameter(clone, key), tiny.changed(weight, (tensors, 0.5)))
    clone.patch_hooks(None)
    assert torch.equal(tiny.parameter(clone, key), weight)
