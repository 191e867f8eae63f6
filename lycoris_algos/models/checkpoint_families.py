"""diffusers' names for layers of families whose complete tables ComfyUI has, and which a file lacks.

Beside a loaded model ComfyUI is asked (and these tables are not needed); a checkpoint by itself has only the
names in its header. What ``FAMILIES`` knows besides is not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ._base import KV, QKV, Family, Located, Rule, fused, renamed

_MLP = {"mlp.0": "linear_1", "mlp.2": "linear_2"}


def _embedding(other: str, native: str) -> tuple[Rule, ...]:
    """The two layers of an embedding."""
    return renamed({name: own for own, name in _MLP.items()}, within=(f"{other}.", f"{native}."))


_SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    marks=("joint_blocks.0.x_block.attn.qkv.weight",),
    rules=(
        *renamed(
            {
                "attn.to_out.0": "x_block.attn.proj",
                "attn.to_add_out": "context_block.attn.proj",
                "attn2.to_out.0": "x_block.attn2.proj",
                "norm1.linear": "x_block.adaLN_modulation.1",
                "norm1_context.linear": "context_block.adaLN_modulation.1",
                "ff.net.0.proj": "x_block.mlp.fc1",
                "ff.net.2": "x_block.mlp.fc2",
                "ff_context.net.0.proj": "context_block.mlp.fc1",
                "ff_context.net.2": "context_block.mlp.fc2",
            },
            within=("transformer_blocks.{}.", "joint_blocks.{}."),
        ),
        *_embedding("time_text_embed.timestep_embedder", "t_embedder"),
        *_embedding("time_text_embed.text_embedder", "y_embedder"),
        Rule("pos_embed.proj", "x_embedder.proj"),
        Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True),
        Rule("proj_out", "final_layer.linear"),
    ),
)

_PIXART = Family(
    name="pixart",
    title="PixArt",
    marks=("blocks.0.cross_attn.kv_linear.weight",),
    rules=(
        *fused("blocks.{}.attn.qkv", [f"transformer_blocks.{{}}.attn1.to_{p}" for p in "qkv"], QKV),
        *fused("blocks.{}.cross_attn.kv_linear", [f"transformer_blocks.{{}}.attn2.to_{p}" for p in "kv"], KV),
        *renamed(
            {
                "attn1.to_out.0": "attn.proj",
                "attn2.to_q": "cross_attn.q_linear",
                "attn2.to_out.0": "cross_attn.proj",
                "ff.net.0.proj": "mlp.fc1",
                "ff.net.2": "mlp.fc2",
            },
            within=("transformer_blocks.{}.", "blocks.{}."),
        ),
        *_embedding("adaln_single.emb.timestep_embedder", "t_embedder"),
        *_embedding("adaln_single.emb.resolution_embedder", "csize_embedder"),
        *_embedding("adaln_single.emb.aspect_ratio_embedder", "ar_embedder"),
        *renamed(
            {
                "adaln_single.linear": "t_block.1",
                "caption_projection.linear_1": "y_embedder.y_proj.fc1",
                "caption_projection.linear_2": "y_embedder.y_proj.fc2",
                "pos_embed.proj": "x_embedder.proj",
                "proj_out": "final_layer.linear",
            }
        ),
    ),
)

_FEED_FORWARD = {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}

_AURA_FLOW = Family(
    name="auraflow",
    title="AuraFlow",
    marks=("double_layers.0.attn.w1q.weight",),
    rules=(
        *renamed(
            {
                **{f"attn.to_{p}": f"attn.w2{p}" for p in "qkv"},
                **{f"attn.add_{p}_proj": f"attn.w1{p}" for p in "qkv"},
                "attn.to_out.0": "attn.w2o",
                "attn.to_add_out": "attn.w1o",
                "norm1.linear": "modX.1",
                "norm1_context.linear": "modC.1",
                **{f"ff.{name}": f"mlpX.{own}" for name, own in _FEED_FORWARD.items()},
                **{f"ff_context.{name}": f"mlpC.{own}" for name, own in _FEED_FORWARD.items()},
            },
            within=("joint_transformer_blocks.{}.", "double_layers.{}."),
        ),
        *renamed(
            {
                **{f"attn.to_{p}": f"attn.w1{p}" for p in "qkv"},
                "attn.to_out.0": "attn.w1o",
                "norm1.linear": "modCX.1",
                **{f"ff.{name}": f"mlp.{own}" for name, own in _FEED_FORWARD.items()},
            },
            within=("single_transformer_blocks.{}.", "single_layers.{}."),
        ),
        *_embedding("time_step_proj", "t_embedder"),
        *renamed(
            {
                "context_embedder": "cond_seq_linear",
                "pos_embed.proj": "init_x_linear",
                "proj_out": "final_linear",
            }
        ),
        Rule("norm_out.linear", "modF.1", swapped=True),
    ),
)

_LAST_NORM = "context_block.adaLN_modulation.1.weight"


def more_names(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Located]]:
    """(name, what it stands for) in a model with parameters of ``shapes``."""
    for family in (_SD3, _PIXART, _AURA_FLOW):
        if family.owns(shapes):
            for name, located in family.names(shapes):
                rows, columns = (*shapes[located.key], 0)[:2]
                # Of the last block only the attention is used: its norm has a scale and a shift, which
                # diffusers has the other way round, where the others have six parts.
                swapped = located.key.endswith(_LAST_NORM) and rows == 2 * columns
                yield name, Located(located.key, located.rows, located.swapped or swapped)
