"""HunyuanVideo, HunyuanImage and their relatives: Flux' blocks, and a refiner of text tokens before them.

ComfyUI renamed the layers to be like Flux'. Tencent's own names are musubi-tuner's and OneTrainer's;
diffusers has a third set. Tencent's ``img_attn_qkv`` is ComfyUI's ``img_attn.qkv``, which flattened names do
not tell apart, so there is no rule for it.
"""

from __future__ import annotations

from ._base import QKV, QKV_MLP, Family, Rule, aliases, fused, renamed
from .flux import BLOCKS, OUTPUT, embedder

_REFINER = "txt_in.individual_token_refiner.blocks.{}."
_DIFFUSERS_REFINER = "context_embedder.token_refiner.refiner_blocks.{}."


def _tencent_embedder(name: str) -> tuple[Rule, ...]:
    return renamed({"mlp.0": "in_layer", "mlp.2": "out_layer"}, within=(f"{name}.", f"{name}."))


def _tencent_mlp(path: str) -> tuple[Rule, ...]:
    return renamed({"fc1": "0", "fc2": "2"}, within=(path, path))


_TENCENT = (
    *_tencent_embedder("time_in"),
    *_tencent_embedder("guidance_in"),
    *_tencent_embedder("txt_in.t_embedder"),
    *embedder("txt_in.c_embedder", "txt_in.c_embedder"),
    *_tencent_mlp(f"{_REFINER}mlp."),
    *(rule for stream in ("img", "txt") for rule in _tencent_mlp(f"double_blocks.{{}}.{stream}_mlp.")),
    *(
        Rule(f"double_blocks.{{}}.{stream}_mod.linear", f"double_blocks.{{}}.{stream}_mod.lin")
        for stream in ("img", "txt")
    ),
    *(
        Rule(f"double_blocks.{{}}.{stream}_attn_{short}_norm", f"double_blocks.{{}}.{stream}_attn.norm.{own}")
        for stream in ("img", "txt")
        for short, own in (("q", "query_norm"), ("k", "key_norm"))
    ),
    # Trained with the fused layers apart: musubi-tuner's HunyuanVideo 1.5, HunyuanImage 2.1.
    *(
        rule
        for stream in ("img", "txt")
        for rule in fused(
            f"double_blocks.{{}}.{stream}_attn.qkv",
            [f"double_blocks.{{}}.{stream}_attn_{part}" for part in "qkv"],
            QKV,
        )
    ),
    *fused(
        "single_blocks.{}.linear1",
        [f"single_blocks.{{}}.linear1_{part}" for part in ("q", "k", "v", "mlp")],
        QKV_MLP,
    ),
    *fused(f"{_REFINER}self_attn.qkv", [f"{_REFINER}self_attn_{part}" for part in "qkv"], QKV),
    Rule("single_blocks.{}.modulation.linear", "single_blocks.{}.modulation.lin"),
    Rule("single_blocks.{}.q_norm", "single_blocks.{}.norm.query_norm"),
    Rule("single_blocks.{}.k_norm", "single_blocks.{}.norm.key_norm"),
)

_DIFFUSERS = (
    *BLOCKS,
    *OUTPUT,
    Rule("x_embedder.proj", "img_in.proj"),
    Rule("context_embedder.proj_in", "txt_in.input_embedder"),
    *embedder("context_embedder.time_text_embed.timestep_embedder", "txt_in.t_embedder"),
    *embedder("context_embedder.time_text_embed.text_embedder", "txt_in.c_embedder"),
    *embedder("time_text_embed.timestep_embedder", "time_in"),
    *embedder("time_text_embed.guidance_embedder", "guidance_in"),
    *embedder("time_text_embed.text_embedder", "vector_in"),
    *fused(f"{_REFINER}self_attn.qkv", [f"{_DIFFUSERS_REFINER}attn.to_{part}" for part in "qkv"], QKV),
    *renamed(
        {
            "attn.to_out.0": "self_attn.proj",
            "ff.net.0.proj": "mlp.0",
            "ff.net.2": "mlp.2",
            "norm_out.linear": "adaLN_modulation.1",
            "norm1": "norm1",
            "norm2": "norm2",
        },
        within=(_DIFFUSERS_REFINER, _REFINER),
    ),
)

FAMILY = Family(
    name="hunyuan_video",
    title="HunyuanVideo",
    marks=("txt_in.individual_token_refiner.blocks.0.self_attn.qkv.weight",),
    rules=(*_DIFFUSERS, *aliases(_TENCENT)),
    signs=(
        r"individual_token_refiner_",
        r"token_refiner_refiner_blocks_",
        r"double_blocks_\d+_(img|txt)_(mlp_fc\d|mod_linear|attn_[qkv]$)",
        r"single_blocks_\d+_linear1_(q|k|v|mlp)$",
        r"double_blocks_(19|[2-5]\d)_|single_blocks_3[89]_",  # Flux has 19 and 38 of them
    ),
    labels=("hunyuan",),
)
