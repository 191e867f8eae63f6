"""Baking from and to number types: whole ones, fp8 with and without scales, and what cannot be changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from baking import FP8, UNET, Tensors, bake, base_tensors, entry, every_block, live, lora, raw, save_base
from safetensors.torch import load_file

from lycoris_algos.errors import LycorisError
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import bake_report, plan_bake, run_bake
from lycoris_algos.model_files.storage import is_companion


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_dtype_holds_for_the_model_and_not_for_the_rest(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_base(tmp_path)
    layers = every_block()
    result = bake(base, entry(layers), dtype=dtype)
    before, after = load_file(base), load_file(result.path)
    for key, value in after.items():
        if key in ("steps", "betas"):
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key])
            continue
        assert value.dtype == dtype
        own = layers.get(f"lora_unet_{key.removeprefix(UNET).removesuffix('.weight').replace('.', '_')}")
        expected = live(before[key], (own, 1.0)) if own else before[key].float()
        assert torch.equal(value, expected.to(dtype)), key


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_fp8_is_for_matrices_and_is_the_same_each_time(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_base(tmp_path)
    first, second = (bake(base, entry(every_block()), dtype=dtype) for _ in range(2))
    after = load_file(first.path)
    kept = {f"{UNET}norm.weight", "first_stage_model.conv.weight", "steps", "betas"}
    for key, value in after.items():
        is_matrix = key not in kept and not key.endswith(".bias")
        assert (value.dtype == dtype) == is_matrix, key
    assert first.path.read_bytes() == second.path.read_bytes()
    # A change far below the gap of fp8 survives on average, where rounding to the nearest would lose it.
    assert first.proof.steps <= 1.0


def test_small_changes_survive_fp8_on_average(tmp_path: Path) -> None:
    tensors = {f"{UNET}{number}.weight": torch.full((256, 256), 1.0) for number in range(6)}
    base = save_base(tmp_path, tensors)
    result = bake(base, entry({"lora_unet_0": {"diff": torch.full((256, 256), 0.01)}}), dtype=FP8)
    after = load_file(result.path)[f"{UNET}0.weight"].float()
    assert set(after.unique().tolist()) == {1.0, 1.125}
    assert abs(float(after.mean()) - 1.01) < 0.001


# ---- scaled fp8 and other layouts -------------------------------------------------------------------------


def scaled(second_form: bool = False) -> Tensors:
    """The same checkpoint with the weights of blocks 0 to 3 as fp8 with a scale."""
    tensors = base_tensors()
    for number in range(4):
        key = f"{UNET}blocks.{number}.linear.weight"
        weight = tensors[key].float()
        scale = weight.abs().max() / 448
        tensors[key] = (weight / scale).to(FP8)
        layer = key.removesuffix("weight")
        tensors[layer + ("weight_scale" if second_form else "scale_weight")] = scale
        if second_form:
            tensors[f"{layer}comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}')).byte()
    if not second_form:
        tensors[f"{UNET}scaled_fp8"] = torch.empty(2, dtype=FP8)
    return tensors


@pytest.mark.parametrize("second_form", [False, True])
def test_scaled_fp8_gets_a_new_scale_where_it_is_changed(second_form: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path, scaled(second_form))
    name = "weight_scale" if second_form else "scale_weight"
    own = lora()
    result = bake(base, entry({"lora_unet_blocks_0_linear": own}))
    before, after = load_file(base), load_file(result.path)
    layer = f"{UNET}blocks.0.linear."
    plain = before[layer + "weight"].float() * before[layer + name]
    expected = live(plain, (own, 1.0))
    found = after[layer + "weight"].float() * after[layer + name]
    assert after[layer + "weight"].dtype == FP8
    assert torch.allclose(after[layer + name], expected.abs().max() / 448)
    assert bool(((found - expected).abs() <= expected.abs() * 0.125 + after[layer + name] * 2**-9).all())
    old, new = raw(base), raw(result.path)
    assert [k for k in old if old[k] != new[k]] == [k for k in old if k in (layer + name, layer + "weight")]
    assert "1 changed fp8 weights get a new scale" in bake_report(result)


def test_no_scale_that_is_new_is_expected_to_be_a_copy(tmp_path: Path) -> None:
    tensors = {key: value for key, value in scaled().items() if re.search(r"blocks\.[0-3]|scaled", key)}
    base = save_base(tmp_path, tensors)
    layers = {layer: own for layer, own in every_block().items() if layer[-8] in "0123"}
    for seed in range(10):
        plan = plan_bake(read_header(base), [entry(layers)], seed=seed)
        assert run_bake(plan, base, tmp_path / "out.safetensors").proof.copied > 0


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_scale_may_be_a_number_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = scaled()
    layer = f"{UNET}blocks.0.linear."
    tensors[f"{layer}scale_weight"] = tensors[f"{layer}scale_weight"].reshape(shape)
    result = bake(save_base(tmp_path, tensors), entry({"lora_unet_blocks_0_linear": lora()}))
    after = load_file(result.path)
    assert after[f"{layer}weight"].shape == (24, 16)
    assert after[f"{layer}scale_weight"].shape == shape


@pytest.mark.parametrize("second_form", [False, True])
def test_scaled_fp8_is_unpacked_for_another_dtype(second_form: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path, scaled(second_form))
    own = lora()
    result = bake(base, entry({"lora_unet_blocks_0_linear": own}), dtype=torch.bfloat16)
    before, after = load_file(base), load_file(result.path)
    assert not any(map(is_companion, after))
    for number in range(4):
        layer = f"{UNET}blocks.{number}.linear."
        scale = before[layer + ("weight_scale" if second_form else "scale_weight")]
        plain = before[layer + "weight"].float() * scale
        expected = plain if number else live(plain, (own, 1.0))
        assert torch.equal(after[layer + "weight"], expected.bfloat16())


@pytest.mark.parametrize(
    ("layout", "extra"),
    [
        ("NVFP4", {"weight": torch.zeros(24, 8).byte(), "weight_scale_2": torch.ones(())}),
        ("quantised whole numbers", {"weight": torch.zeros(24, 16).char(), "weight_scale": torch.ones(())}),
        ("fp8 with a scale", {"weight": torch.zeros(24, 16).to(FP8), "weight_scale": torch.tensor(1j)}),
        ("a scale for each block", {"weight": torch.zeros(24, 16).to(FP8), "weight_scale": torch.ones(24)}),
        ("GPTQ or AWQ", {"qweight": torch.zeros(24, 2).int()}),
    ],
)
def test_other_layouts_are_refused_by_name(layout: str, extra: Tensors, tmp_path: Path) -> None:
    tensors = base_tensors()
    layer = f"{UNET}blocks.0.linear."
    del tensors[layer + "weight"]
    tensors |= {layer + name: value for name, value in extra.items()}
    base = save_base(tmp_path, tensors)
    with pytest.raises(LycorisError, match=layout) as error:
        plan_bake(
            read_header(base), [entry({"lora_unet_blocks_0_linear": lora(shape=(24, 16))})], base="b.st"
        )
    assert "b.st" in str(error.value)
    assert "another" not in str(error.value), "the adapter is blamed"
