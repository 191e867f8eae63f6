"""Stable Diffusion's UNets, which ComfyUI knows under diffusers' names as well, and Stable Cascade."""

from __future__ import annotations

from ._base import Family

_ATTENTION = r"transformer_blocks_\d+_(attn[12]|ff)_"

SDXL = Family(
    name="sdxl",
    title="SDXL",
    marks=("input_blocks.0.0.weight", "label_emb.0.0.weight"),
    signs=(
        r"(input_blocks_\d+|output_blocks_\d+|middle_block)_1_transformer_blocks_[1-9]\d*_",
        r"(down_blocks|up_blocks)_\d+_attentions_\d+_transformer_blocks_[1-9]\d*_",
        r"mid_block_attentions_0_transformer_blocks_[1-9]\d*_",
    ),
    labels=("stable-diffusion-xl", "sdxl"),
)

SD15 = Family(
    name="sd15",
    title="Stable Diffusion 1 or 2",
    marks=("input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"),
    signs=(
        rf"(down_blocks|up_blocks)_\d+_attentions_\d+_{_ATTENTION}",
        rf"mid_block_attentions_0_{_ATTENTION}",
        r"(down_blocks|up_blocks|mid_block)_.*resnets_\d+_",
        rf"(input_blocks_\d+|output_blocks_\d+|middle_block)_1_{_ATTENTION}",
    ),
    labels=("stable-diffusion-v1", "stable-diffusion-v2", "sd_v1", "sd_v2"),
)

CASCADE = Family(
    name="cascade",
    title="Stable Cascade",
    marks=("down_blocks.0.0.depthwise.weight", "up_blocks.0.0.depthwise.weight"),
    signs=(r"(down_blocks|up_blocks)_\d+_\d+_(attention_attn|channelwise|mapper|depthwise)",),
    labels=("stable-cascade",),
)
