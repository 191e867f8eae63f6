"""The rank widgets of Combine LyCORIS that cap others."""

from __future__ import annotations

from typing import Any

import tiny

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TO_Q_KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


def test_a_largest_rank_and_one_for_convolutions(sd15: Any, apply: Any, comfy_nodes: dict[str, Any]) -> None:
    node = comfy_nodes["CombineLyCORIS"]
    defaults = {
        item.id: item.default
        for item in node.define_schema().inputs
        if getattr(item, "default", None) is not None
    }
    keys = {TO_Q: TO_Q_KEY, tiny.CONV_IN: tiny.CONV_IN_KEY}
    stack = apply.stack({name: tiny.make("lora", tiny.parameter(sd15[0], key)) for name, key in keys.items()})

    def ranks(**widgets: Any) -> list[int]:
        made, _ = node.execute(**{**defaults, "lycoris": stack, **widgets}).args
        return [made[0].adapters[name].algorithm.rank for name in keys]

    linear, conv = ranks()
    assert min(linear, conv) > 2
    caps = {"max_rank": 2, "conv_rank": 1}
    assert ranks(rank_control="energy", threshold=1.0, **caps) == [2, 1]
    assert ranks(rank_control="energy", threshold=1.0, conv_rank=1) == [linear, 1]
    assert ranks(rank_control="fixed rank", rank=3, **caps) == [3, 1]
    assert ranks(**caps) == [linear, conv], "they keep their values while 'exact' is chosen"
