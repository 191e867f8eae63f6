"""One weight that layers of one file reach twice, on a loaded model; and where the order then matters."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

QKV = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
FUSED = "lora_unet_joint_blocks_0_x_block_attn_qkv"
SPLIT = "transformer.transformer_blocks.0.attn.to_"


def test_one_layer_under_two_names_is_made_once(sd15: tuple[Any, Any], apply: Any) -> None:
    model, _ = sd15
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = tiny.parameter(model, key).clone()
    own = tiny.make("lora", weight)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    names = ("lora_unet_" + path.replace(".", "_"), "unet." + path)
    patched, _, report = apply.files(model, dict.fromkeys(names, own))
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(key), tiny.changed(weight, (own, 1.0)))
    assert "1 of 2 layers applied" in report
    assert f"{names[1]}: the same change" in report


@pytest.mark.parametrize("dora", [False, True])
def test_leftovers_beside_a_fused_layer_are_dropped(dora: bool, sd3: Any, apply: Any) -> None:
    weight = tiny.parameter(sd3, QKV).clone()
    fused = tiny.make("dora" if dora else "lora", weight)
    layers = {FUSED: fused}
    for name, rows in zip("qkv", weight.split(128), strict=True):
        own = {**tiny.make("lora", rows), "dora_scale": rows.norm(dim=1, keepdim=True)}
        layers[f"{SPLIT}{name}"] = {**own, "lora_up.weight": torch.zeros_like(own["lora_up.weight"])}
    patched, _, report = apply.files(sd3, layers)
    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(QKV), tiny.changed(weight, (fused, 1.0)))
    assert "never trained" in report
    assert "the order of the changes" not in report


@pytest.mark.parametrize("whole", ["dora", "lora"])
@pytest.mark.parametrize("first", [True, False])
def test_the_order_matters_where_a_change_meets_a_part_of_the_weight(
    whole: str, first: bool, sd3: Any, apply: Any
) -> None:
    weight = tiny.parameter(sd3, QKV)
    files = [
        {FUSED: tiny.make(whole, weight)},
        {f"{SPLIT}k": tiny.make("lora", weight.split(128)[1])},
    ]
    _, _, report = apply.files(sd3, *(files if first else files[::-1]))
    assert ("the order of the changes matters" in report) == (whole == "dora")


def test_the_order_does_not_matter_on_other_rows(sd3: Any, apply: Any) -> None:
    q, k, _ = tiny.parameter(sd3, QKV).split(128)
    files = {f"{SPLIT}q": tiny.make("dora", q)}, {f"{SPLIT}k": tiny.make("lora", k)}
    _, _, report = apply.files(sd3, *files)
    assert "the order of the changes" not in report
