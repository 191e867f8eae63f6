"""What hosts do with a patch besides loading it whole: half precision weights, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import zoo
from oracles import round_once, to_numpy, ulp
from torch import Tensor

LAYER, KEY = "lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q.weight"
CONV, CONV_KEY = "lora_unet_patch_embedding", "diffusion_model.patch_embedding.weight"
ALGOS = ("lora", "loha", "lokr", "full", "dora", "glora", "ia3", "oft", "boft")
HALVES = (torch.bfloat16, torch.float16)


def hand_over(patched: Any, key: str, weight: Tensor) -> Tensor:
    """``weight``, a copy that the host has cast, through the function that a low-VRAM layer calls."""
    from comfy.model_patcher import LowVramPatch

    return LowVramPatch(key, patched.patches)(weight.clone())


def seed_of(key: str) -> int:
    """What the host's rounding of a weight is seeded with; the function moved."""
    import comfy.model_patcher
    import comfy.utils

    where = comfy.utils if hasattr(comfy.utils, "string_to_seed") else comfy.model_patcher
    return int(where.string_to_seed(key))


def assert_rounded_once(found: Tensor, expected: Tensor) -> None:
    """``found`` is a nearest number of its dtype to ``expected``; float32 arithmetic may tip a tie."""
    exact = to_numpy(expected)
    unit = ulp(exact, found.dtype)
    slack = 8 * torch.finfo(torch.float32).eps * abs(exact).max()
    assert (abs(to_numpy(found) - exact) <= unit / 2 + slack).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("algo", ALGOS)
def test_half_precision(algo: str, dtype: torch.dtype, wan: Any, apply: Any) -> None:
    weight = tiny.parameter(wan, KEY).to(dtype)
    tensors = tiny.make(algo, weight.float())
    patched, _, _ = apply.files(wan, {LAYER: tensors}, strength=0.7)

    found = hand_over(patched, KEY, weight)

    assert found.dtype == dtype
    assert_rounded_once(found, tiny.changed(weight, (tensors, 0.7)))


@pytest.mark.parametrize("dtype", HALVES)
def test_convolutions_in_half_precision(dtype: torch.dtype, wan: Any, apply: Any) -> None:
    weight = tiny.parameter(wan, CONV_KEY).to(dtype)
    tensors = tiny.make("lokr", weight.float())
    patched, _, _ = apply.files(wan, {CONV: tensors})

    assert_rounded_once(hand_over(patched, CONV_KEY, weight), tiny.changed(weight, (tensors, 1.0)))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_stack_of_three_rounds_once(dtype: torch.dtype, wan: Any, apply: Any) -> None:
    weight = tiny.parameter(wan, KEY).to(dtype)
    files = [tiny.make(algo, weight.float(), algo) for algo in ("lora", "loha", "lokr")]
    patched, _, _ = apply.files(wan, *({LAYER: tensors} for tensors in files))
    expected = tiny.changed(weight, *((tensors, 1.0) for tensors in files))

    assert_rounded_once(hand_over(patched, KEY, weight), expected)

    one_by_one = weight
    for tensors in files:
        one_by_one = torch.from_numpy(round_once(to_numpy(tiny.changed(one_by_one, (tensors, 1.0))), dtype))
    with pytest.raises(AssertionError):  # or this test could not tell the difference
        assert_rounded_once(one_by_one.to(dtype), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8(dtype: torch.dtype, pack: ModuleType, apply: Any) -> None:
    """The host upcasts, and rounds stochastically (from one seed per weight) on the way back."""
    import comfy.float
    import comfy.utils

    model = zoo.model("Wan 2.1")
    weight = tiny.parameter(model, KEY).to(dtype)
    comfy.utils.set_attr_param(model.model, KEY, weight)
    tensors = tiny.make("lokr", weight.float())
    patched, _, _ = apply.files(model, {LAYER: tensors})

    with tiny.loaded(patched) as now:
        found = now(KEY)

    exact = tiny.changed(weight.float(), (tensors, 1.0)).float()
    expected = comfy.float.stochastic_rounding(exact, dtype, seed=seed_of(KEY))
    assert found.dtype == dtype
    # The last bit of a float32 may tip one or the other.
    assert float((found.float() == expected.float()).float().mean()) > 0.999


@pytest.mark.parametrize("dtype", HALVES)
def test_a_slice_in_half_precision(dtype: torch.dtype, sd3: Any, apply: Any) -> None:
    key = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    weight = tiny.parameter(sd3, key).to(dtype)
    tensors = tiny.make("lora", weight[128:256].float())
    patched, _, _ = apply.files(sd3, {"transformer.transformer_blocks.0.attn.to_k": tensors})

    found = hand_over(patched, key, weight)

    assert torch.equal(found[:128], weight[:128])
    assert torch.equal(found[256:], weight[256:])
    assert_rounded_once(found[128:256], tiny.changed(weight[128:256], (tensors, 1.0)))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_reordered_weight_in_half_precision(dtype: torch.dtype, sd3: Any, apply: Any) -> None:
    key = "diffusion_model.final_layer.adaLN_modulation.1.weight"
    weight = tiny.parameter(sd3, key).to(dtype)
    tensors = tiny.make("lora", weight.float())
    patched, _, _ = apply.files(sd3, {"transformer.norm_out.linear": tensors})

    delta = tiny.changed(weight, (tensors, 1.0)) - weight.double()
    expected = weight.double() + torch.cat(delta.chunk(2)[::-1])
    assert_rounded_once(hand_over(patched, key, weight), expected)


def test_layers_that_stay_offloaded_compute_with_the_same_weight(wan: Any, apply: Any) -> None:
    """The model loaded for low VRAM: the layer patches its weight each time that it runs."""
    layer = wan.model.diffusion_model.blocks[0].self_attn.q
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    tensors = {**tiny.make("loha", weight), "diff_b": torch.randn_like(bias)}
    patched, _, _ = apply.files(wan, {LAYER: tensors}, strength=0.9)
    x = torch.randn(3, 128)
    expected = torch.nn.functional.linear(
        x.double(), tiny.changed(weight, (tensors, 0.9)), tiny.changed_bias(bias, (tensors, 0.9))
    )

    patched.patch_model(device_to=patched.load_device, lowvram_model_memory=1)
    try:
        assert len(layer.weight_function) == 1, "this is not the low-VRAM path"
        for _ in range(3):
            torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer.weight, weight)
    finally:
        patched.unpatch_model(patched.offload_device)
    assert layer.weight_function == []


# ---- newer hosts ------------------------------------------------------------------------------------------


def moved(value: Any) -> Any:
    """A copy as hosts make it that stream patches to a GPU: of tensors, and tuples and lists of them.

    Anything else is passed on as it is, and a dictionary is not looked into.
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        return type(value)(moved(item) for item in value)
    return value


def every_patch(sd3: Any, apply: Any) -> dict[Any, Any]:
    """Patches of every algorithm, on whole weights, slices, reordered ones and biases."""
    weight = tiny.parameter(sd3, "diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight")
    square = tiny.parameter(sd3, "diffusion_model.joint_blocks.0.x_block.attn.proj.weight")
    stacks = [{"lora_unet_joint_blocks_0_x_block_mlp_fc1": tiny.make(algo, weight)} for algo in ALGOS]
    stacks.append(
        {
            "lora_unet_joint_blocks_0_x_block_attn_proj": {
                **tiny.make("tlora", square),
                "diff_b": torch.randn(128),
            },
            "transformer.transformer_blocks.0.attn.to_k": tiny.make("oft", square),
            "transformer.norm_out.linear": tiny.make("lora", torch.randn(256, 128)),
            "lora_unet_context_embedder": {
                **tiny.make("lora", torch.randn(128, 4100)),
                "reshape_weight": torch.tensor([128, 4100]),
            },
        }
    )
    patched = sd3
    for layers in stacks:  # one node each: as many patches as possible
        patched, _, _ = apply.files(patched, layers)
    found = {}
    for key, entries in patched.patches.items():
        for number, entry in enumerate(entries):
            found[key, number] = entry
    assert len(found) >= len(ALGOS) + 5
    return found


def test_a_patch_is_rebuilt_from_its_weights(sd3: Any, apply: Any) -> None:
    import comfy.lora

    for (key, number), (strength, patch, strength_model, offset, function) in every_patch(sd3, apply).items():
        base = tiny.parameter(sd3, key).clone()

        def run(value: Any, dtype: torch.dtype) -> Tensor:
            entry = (strength, value, strength_model, offset, function)  # noqa: B023 - called at once
            return comfy.lora.calculate_weight([entry], base.to(dtype, copy=True), key, dtype)  # noqa: B023

        rebuilt = type(patch)(patch.loaded_keys, moved(patch.weights))

        for dtype in (torch.float32, torch.bfloat16):
            expected = run(patch, dtype)
            assert not torch.equal(expected, base.to(dtype)), f"{key} {number}: nothing is changed"
            assert torch.equal(run(rebuilt, dtype), expected)
            assert torch.equal(run(patch, dtype), expected), "it is not the same each time"


def test_all_state_of_a_patch_lies_flat_in_its_weights(sd3: Any, apply: Any) -> None:
    for (key, _), (_, patch, *_) in every_patch(sd3, apply).items():
        # What may be there besides is read out of ``weights`` when it is first asked for.
        assert {"loaded_keys", "weights"} <= vars(patch).keys() <= {"loaded_keys", "weights", "entries"}, key
        assert isinstance(patch.weights, tuple)
        for item in patch.weights:
            plain = item is None or isinstance(item, (Tensor, int, float, str))
            is_shape = isinstance(item, tuple) and all(isinstance(size, int) for size in item)
            assert plain or is_shape, f"{key}: {type(item)}"
        assert isinstance(patch.loaded_keys, set)


def test_calling_a_patch_changes_nothing_in_it(sd3: Any, apply: Any) -> None:
    import comfy.lora

    for (key, _), entry in every_patch(sd3, apply).items():
        patch = entry[1]
        before = copy.deepcopy(patch.weights)
        comfy.lora.calculate_weight([entry], tiny.parameter(sd3, key).clone(), key)

        assert len(patch.weights) == len(before)
        for now, then in zip(patch.weights, before, strict=True):
            assert torch.equal(now, then) if isinstance(now, Tensor) else now == then


def test_factors_are_kept_as_they_are_stored(wan: Any, apply: Any) -> None:
    """What newer hosts stream for each layer: half precision factors, not their product."""
    weight = tiny.parameter(wan, KEY)
    tensors = {suffix: value.half() for suffix, value in tiny.make("loha", weight).items()}
    patched, _, _ = apply.files(wan, {LAYER: tensors})

    (patch,) = tiny.patches_of(patched).values()

    held = [item for item in patch.weights if isinstance(item, Tensor)]
    assert sum(item.nbytes for item in held) == sum(v.nbytes for v in tensors.values() if v.numel() > 1)


def test_the_host_can_ask_for_a_new_shape(wan: Any, apply: Any) -> None:
    patched, _, _ = apply.files(wan, {LAYER: tiny.make("lora", tiny.parameter(wan, KEY))})

    (patch,) = tiny.patches_of(patched).values()

    assert patch.calculate_shape(KEY) is None


def test_weights_are_changed_in_place(
    wan: Any, apply: Any, load: Callable[[str], Any], pack: ModuleType
) -> None:
    """What a patch returns is thrown away where it was given a slice."""
    patched, _, _ = apply.files(wan, {LAYER: tiny.make("dora", tiny.parameter(wan, KEY))})
    (patch,) = tiny.patches_of(patched).values()
    weight = tiny.parameter(wan, KEY).clone()

    result = patch.calculate_weight(weight, KEY, 1.0, 1.0, None, lambda delta: delta)

    assert result is weight
