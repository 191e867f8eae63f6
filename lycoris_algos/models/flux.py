"""Flux, Chroma and Flux 2: blocks of two streams, then blocks of one, in BFL's names.

diffusers keeps queries, keys and values apart where these models have one weight for them. XLabs' adapters
are named after attention processors, 1 for the image's stream and 2 for the text's.
"""

from __future__ import annotations

from ._base import QKV, QKV_MLP, QKV_OF_MLP, Family, Rule, aliases, fused, renamed

DOUBLE = ("transformer_blocks.{}.", "double_blocks.{}.")
SINGLE = ("single_transformer_blocks.{}.", "single_blocks.{}.")

#: The attention of both kinds of block, as diffusers names it; HunyuanVideo has it too.
ATTENTION = (
    *fused("double_blocks.{}.img_attn.qkv", [f"{DOUBLE[0]}attn.to_{p}" for p in "qkv"], QKV),
    *fused("double_blocks.{}.txt_attn.qkv", [f"{DOUBLE[0]}attn.add_{p}_proj" for p in "qkv"], QKV),
    *renamed(
        {
            "attn.to_out.0": "img_attn.proj",
            "attn.to_add_out": "txt_attn.proj",
            "attn.norm_q": "img_attn.norm.query_norm",
            "attn.norm_k": "img_attn.norm.key_norm",
            "attn.norm_added_q": "txt_attn.norm.query_norm",
            "attn.norm_added_k": "txt_attn.norm.key_norm",
        },
        within=DOUBLE,
    ),
    *renamed({"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}, within=SINGLE),
)


def _perceptrons(first: str, second: str) -> tuple[Rule, ...]:
    """Those of both streams, whose two layers diffusers calls so."""
    return renamed(
        {
            f"{other}.{name}": f"{own}.{number}"
            for other, own in (("ff", "img_mlp"), ("ff_context", "txt_mlp"))
            for name, number in ((first, 0), (second, 2))
        },
        within=DOUBLE,
    )


# Files for one of them are named after the other, too.
_OF_FLUX = (
    *_perceptrons("net.0.proj", "net.2"),
    *fused(
        "single_blocks.{}.linear1",
        [*(f"{SINGLE[0]}attn.to_{part}" for part in "qkv"), f"{SINGLE[0]}proj_mlp"],
        QKV_MLP,
    ),
    Rule(f"{SINGLE[0]}proj_out", f"{SINGLE[1]}linear2"),
)
_OF_FLUX_2 = (
    *_perceptrons("linear_in", "linear_out"),
    *renamed({"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}, within=SINGLE),
)
_QKV_OF_LINEAR1 = Rule("single_blocks.{}.linear1_qkv", "single_blocks.{}.linear1", QKV_OF_MLP, alias=True)

#: What Flux, Chroma and HunyuanVideo have in common besides.
BLOCKS = (
    *ATTENTION,
    *_OF_FLUX,
    *aliases(_OF_FLUX_2),
    _QKV_OF_LINEAR1,
    *renamed(
        {
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
        },
        within=DOUBLE,
    ),
    *renamed({"norm.linear": "modulation.lin"}, within=SINGLE),
)

#: diffusers' continuous norm at the end has scale before shift.
OUTPUT = (
    Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True),
    Rule("proj_out", "final_layer.linear"),
)

_XLABS = (
    *renamed(
        {
            "qkv_lora1": "img_attn.qkv",
            "proj_lora1": "img_attn.proj",
            "qkv_lora2": "txt_attn.qkv",
            "proj_lora2": "txt_attn.proj",
        },
        within=("double_blocks.{}.", "double_blocks.{}."),
    ),
    Rule("single_blocks.{}.qkv", "single_blocks.{}.linear1", QKV_OF_MLP),
    Rule("single_blocks.{}.proj", "single_blocks.{}.linear2"),
)

_INPUTS = renamed({"x_embedder": "img_in", "context_embedder": "txt_in"})


def embedder(other: str, native: str) -> tuple[Rule, ...]:
    """The two layers of an embedding of one number, or of one vector."""
    return renamed({"linear_1": "in_layer", "linear_2": "out_layer"}, within=(f"{other}.", f"{native}."))


FLUX = Family(
    name="flux",
    title="Flux",
    marks=("img_in.weight", "double_blocks.0.img_mod.lin.weight"),
    rules=(
        *BLOCKS,
        *aliases(_XLABS),
        *_INPUTS,
        *OUTPUT,
        Rule("img_in.proj", "img_in", alias=True),  # in OneTrainer's "OMI" files
        *embedder("time_text_embed.timestep_embedder", "time_in"),
        *embedder("time_text_embed.guidance_embedder", "guidance_in"),
        *embedder("time_text_embed.text_embedder", "vector_in"),
    ),
    signs=(
        r"double_blocks_\d+_(img|txt)_(attn|mlp|mod)",
        r"single_blocks_\d+_(linear|modulation)",
        r"single_transformer_blocks_\d+_(attn_to_|proj_|norm_linear)",
        r"(double|single)_blocks_\d+_processor_(qkv|proj)_lora",
    ),
    labels=("flux-1", "flux1", "flux.1"),
)

CHROMA = Family(
    name="chroma",
    title="Chroma",
    marks=("distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"),
    rules=(
        *BLOCKS,
        *_INPUTS,
        Rule("proj_out", "final_layer.linear"),
        *embedder("distilled_guidance_layer.layers.{}", "distilled_guidance_layer.layers.{}"),
    ),
    signs=(r"distilled_guidance_layer_",),
    labels=("chroma",),
    keeps_names=True,
)

FLUX_2 = Family(
    name="flux2",
    title="Flux 2",
    marks=("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"),
    rules=(
        *ATTENTION,
        *_INPUTS,
        *OUTPUT,
        *_OF_FLUX_2,
        *aliases(_OF_FLUX),
        _QKV_OF_LINEAR1,
        *embedder("time_guidance_embed.timestep_embedder", "time_in"),
        *embedder("time_guidance_embed.guidance_embedder", "guidance_in"),
        *aliases(embedder("time_text_embed.timestep_embedder", "time_in")),
        *aliases(embedder("time_text_embed.guidance_embedder", "guidance_in")),
        *(
            Rule(f"{name}_modulation{stream}.linear", f"{name}_modulation{stream}.lin")
            for name, stream in (
                ("double_stream", "_img"),
                ("double_stream", "_txt"),
                ("single_stream", ""),
            )
        ),
    ),
    signs=(
        r"(double|single)_stream_modulation_?",
        r"attn_to_qkv_mlp_proj",
        r"ff_context_linear_(in|out)",
        r"single_(transformer_)?blocks_4[0-7]_",  # Flux has 38 of them
    ),
    labels=("flux-2", "flux2", "flux.2"),
)
