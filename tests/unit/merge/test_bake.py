"""Baking into files: what is planned, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from baking import UNET, bake, base_tensors, entry, every_block, live, lora, raw, save_base
from safetensors.torch import load_file
from samples import CASES, Case

import lycoris_algos
from lycoris_algos.errors import NoMatchError
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import bake_report, plan_bake, plan_report

# ---- what is written --------------------------------------------------------------------------------------


def test_changed_weights_are_the_live_ones_rounded_once_and_the_rest_is_copied(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    layers = {f"lora_unet_blocks_{number}_linear": lora(seed=number) for number in (1, 2, 5)}
    result = bake(base, entry(layers, 0.7))

    before, after = load_file(base), load_file(result.path)
    changed = {f"{UNET}blocks.{number}.linear.weight" for number in (1, 2, 5)}
    for key, value in before.items():
        if key in changed:
            own = layers[f"lora_unet_blocks_{key.split('.')[3]}_linear"]
            assert torch.equal(after[key], live(value, (own, 0.7)).half())
            assert not torch.equal(after[key], value)
    old, new = raw(base), raw(result.path)
    assert list(old) == list(new), "the order of the base is kept"
    assert all(old[key] == new[key] for key in old if key not in changed)
    assert result.proof.changed == 3
    assert "3 tensors of 'base.safetensors' are changed, 13 are copied" in bake_report(result)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_algorithm_bakes_as_it_is_applied(case: Case, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = case.shape
    # A T-LoRA starts from its own base weight.
    start = next((target for target in case.targets() if target.what == "weight"), None)
    random = torch.randn(shape, generator=generator) * 0.5
    stored = start.weight() if start is not None and "tlora" in case.algos else random
    bias = torch.randn(shape[0], generator=generator)
    tensors = {f"{UNET}x.weight": stored, f"{UNET}x.bias": bias}
    tensors |= {f"{UNET}rest.{number}.weight": torch.zeros(2, 2) for number in range(6)}
    base = save_base(tmp_path, tensors)

    own = entry({"lora_unet_x": case.tensors}, -0.6)

    result = bake(base, own)

    adapter = next(iter(own.adapters.values()))
    after = load_file(result.path)
    assert torch.equal(after[f"{UNET}x.weight"], lycoris_algos.apply_(stored.clone(), [(adapter, -0.6)]))
    if adapter.bias is not None:
        assert torch.equal(after[f"{UNET}x.bias"], adapter.bias.add_to_(bias.clone(), -0.6))
    else:
        assert torch.equal(after[f"{UNET}x.bias"], bias)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float8_e4m3fn])
def test_the_file_does_not_depend_on_how_many_workers_there_are(
    dtype: torch.dtype | None, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = {number: (96 + 16 * number, 640) for number in range(12)}
    tensors = {
        f"{UNET}blocks.{number}.linear.weight": torch.randn(shape, generator=generator).half()
        for number, shape in shapes.items()
    }
    base = save_base(tmp_path, tensors)
    layers = {f"lora_unet_blocks_{number}_linear": lora(shape=shape) for number, shape in shapes.items()}
    threads, files = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            files.append(bake(base, entry(layers, 0.7), dtype=dtype).path.read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert files[0] == files[1] == files[2]


def test_a_base_of_one_tensor_is_a_model_as_well(tmp_path: Path) -> None:
    weight = torch.randn(24, 16)
    base = save_base(tmp_path, {f"{UNET}blocks.0.linear.weight": weight})
    own = lora()
    after = load_file(bake(base, entry({"lora_unet_blocks_0_linear": own})).path)
    assert torch.equal(after[f"{UNET}blocks.0.linear.weight"], live(weight, (own, 1.0)))


def test_a_stack_runs_in_its_order(tmp_path: Path) -> None:
    base = save_base(tmp_path, base_tensors(torch.float32))
    weight = base_tensors(torch.float32)[f"{UNET}blocks.0.linear.weight"]
    full = {"diff": torch.randn(24, 16)}
    dora = {**lora(), "dora_scale": weight.norm(dim=1, keepdim=True) * 1.3}
    layer = "lora_unet_blocks_0_linear"
    result = bake(base, entry({layer: full}, 0.5), entry({layer: dora}, 0.9))
    after = load_file(result.path)[f"{UNET}blocks.0.linear.weight"]
    assert torch.equal(after, live(weight, (full, 0.5), (dora, 0.9)))


def test_multiplier_zero_is_a_copy(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    result = bake(base, entry(every_block(), 0.0))
    assert raw(result.path) == raw(base)
    assert "nothing was changed" in bake_report(result)


def test_a_weight_changed_as_a_whole_and_in_parts_rounds_once(tmp_path: Path) -> None:
    key = f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"
    tensors = {f"{UNET}rest.{n}.weight": torch.zeros(2, 2, dtype=torch.bfloat16) for n in range(6)}
    tensors[key] = torch.randn(48, 16).bfloat16()
    base = save_base(tmp_path, tensors)
    whole, part = lora(shape=(48, 16)), lora(shape=(16, 16), seed=3)
    result = bake(
        base,
        entry({"lora_unet_joint_blocks_0_x_block_attn_qkv": whole}),
        entry({"transformer.transformer_blocks.0.attn.to_k": part}, 0.5),
    )
    expected = live(tensors[key], (whole, 1.0))
    expected[16:32] = live(expected[16:32], (part, 0.5))
    assert torch.equal(load_file(result.path)[key], expected.bfloat16())


def test_openclip_layers_are_changed_where_they_are(tmp_path: Path) -> None:
    root = "conditioner.embedders.1.model."
    width = 1280
    tensors = {
        f"{root}transformer.resblocks.0.attn.in_proj_weight": torch.randn(3 * width, width),
        f"{root}transformer.resblocks.0.attn.in_proj_bias": torch.randn(3 * width),
        f"{root}transformer.resblocks.0.mlp.c_fc.weight": torch.randn(64, width),
        f"{root}text_projection": torch.randn(width, width),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (
            torch.randn(768, 768)
        ),
    }
    base = save_base(tmp_path, tensors)
    k, projection = lora(shape=(width, width)), lora(shape=(width, width), seed=1)
    small = lora(shape=(768, 768), seed=2)
    result = bake(
        base,
        entry(
            {
                "lora_te2_text_model_encoder_layers_0_self_attn_k_proj": {**k, "diff_b": torch.ones(width)},
                "lora_te2_text_projection": projection,
                "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": small,
            },
            clip=0.5,
        ),
    )
    after = load_file(result.path)
    fused = f"{root}transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(after[fused][width : 2 * width], live(tensors[fused][width : 2 * width], (k, 0.5)))
    assert torch.equal(after[fused][:width], tensors[fused][:width])
    assert torch.equal(after[fused][2 * width :], tensors[fused][2 * width :])
    bias = fused.replace("weight", "bias")
    assert torch.equal(after[bias][width : 2 * width], tensors[bias][width : 2 * width] + 0.5)
    key = f"{root}text_projection"
    assert torch.equal(after[key], live(tensors[key].T.contiguous(), (projection, 0.5)).T)
    (other,) = (key for key in tensors if "embedders.0" in key)
    assert torch.equal(after[other], live(tensors[other], (small, 0.5)))


def test_an_adapter_may_enlarge_its_weight(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    wide = {**lora(shape=(24, 20)), "reshape_weight": torch.tensor([24, 20])}
    result = bake(base, entry({"lora_unet_blocks_0_linear": wide}))
    assert load_file(result.path)[f"{UNET}blocks.0.linear.weight"].shape == (24, 20)


# ---- plans ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_listed_with_reasons(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    layers = {
        "lora_unet_blocks_0_linear": lora(),
        "lora_unet_blocks_9_linear": lora(),
        "lora_unet_blocks_1_linear": lora(shape=(24, 18)),
        "lora_unet_norm": {"w_norm": torch.ones(16), "b_norm": torch.ones(16)},
        "lora_te_text_model_encoder_layers_0_mlp_fc1": lora(),
    }
    plan = plan_bake(read_header(base), [entry(layers)], base=base.name)
    (file,) = plan.files
    reasons = {item.key: item.reason for item in file.unmatched}
    assert file.placed == ("lora_unet_blocks_0_linear",)
    assert "no such layer" in reasons["lora_unet_blocks_9_linear"]
    assert "24×18" in reasons["lora_unet_blocks_1_linear"]
    assert "bias" in reasons["lora_unet_norm"]
    assert file.left_out == ("1 text encoder layers are left out: the file has no text encoder",)
    plan.require()
    with pytest.raises(NoMatchError, match="3 entries"):
        plan.require(everything=True)
    report = plan_report(plan)
    assert "1 of 5 layers" in report
    assert "lora_unet_blocks_9_linear" in report


def test_nothing_that_fits_is_an_error_that_says_what_the_base_is(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    plan = plan_bake(read_header(base), [entry({"lora_unet_double_blocks_0_img_mod": lora()})], base="b")
    with pytest.raises(
        NoMatchError, match=r"none of the 1 layers of 'a\.safetensors' fits 'b'.*diffusion model"
    ):
        plan.require()
