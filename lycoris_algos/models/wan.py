"""Wan 2.1 and 2.2, in Alibaba's names; diffusers has its own."""

from __future__ import annotations

from ._base import Family, Rule, renamed

# Those of VACE have the same layers, and two more.
_BLOCKS = ("blocks.{}.", "vace_blocks.{}.")
_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}

FAMILY = Family(
    name="wan",
    title="Wan",
    marks=("patch_embedding.weight", "blocks.0.self_attn.q.weight", "blocks.0.cross_attn.q.weight"),
    rules=(
        *(
            Rule(f"{block}{other}.{name}", f"{block}{own}.{path}")
            for block in _BLOCKS
            for other, own in (("attn1", "self_attn"), ("attn2", "cross_attn"))
            for name, path in _ATTENTION.items()
        ),
        *(
            rule
            for block in _BLOCKS
            for rule in renamed(
                {
                    "ffn.net.0.proj": "ffn.0",
                    "ffn.net.2": "ffn.2",
                    "norm2": "norm3",  # the norm before the cross-attention; neither has another with weights
                    "scale_shift_table": "modulation",
                },
                within=(block, block),
            )
        ),
        *renamed(
            {"proj_in": "before_proj", "proj_out": "after_proj"},
            within=("vace_blocks.{}.", "vace_blocks.{}."),
        ),
        *renamed(
            {
                "condition_embedder.time_embedder.linear_1": "time_embedding.0",
                "condition_embedder.time_embedder.linear_2": "time_embedding.2",
                "condition_embedder.time_proj": "time_projection.1",
                "condition_embedder.text_embedder.linear_1": "text_embedding.0",
                "condition_embedder.text_embedder.linear_2": "text_embedding.2",
                "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
                "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
                "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
                "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
                "proj_out": "head.head",
                "scale_shift_table": "head.modulation",
            }
        ),
    ),
    signs=(
        r"blocks_\d+_(self_attn|cross_attn)_(q|k|v|o|k_img|v_img)$",
        r"blocks_\d+_attn2_(add_|norm_added_)",
        r"blocks_\d+_ffn_(\d|net_)",
    ),
    labels=("wan",),
    keeps_names=True,
)
