"""Other diffusion transformers (SD 3, Qwen-Image, Krea 2 …): what diffusers calls their layers."""

from __future__ import annotations

from ._base import KV, QKV, Family, Rule, fused, renamed


def _embedding(other: str, native: str) -> tuple[Rule, ...]:
    """The two layers of an embedding."""
    return renamed({"linear_1": "mlp.0", "linear_2": "mlp.2"}, within=(f"{other}.", f"{native}."))


SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    marks=("joint_blocks.0.x_block.attn.qkv.weight",),
    rules=(
        *fused(
            "joint_blocks.{}.x_block.attn.qkv", [f"transformer_blocks.{{}}.attn.to_{p}" for p in "qkv"], QKV
        ),
        *fused(
            "joint_blocks.{}.context_block.attn.qkv",
            [f"transformer_blocks.{{}}.attn.add_{p}_proj" for p in "qkv"],
            QKV,
        ),
        *fused(
            "joint_blocks.{}.x_block.attn2.qkv",
            [f"transformer_blocks.{{}}.attn2.to_{p}" for p in "qkv"],
            QKV,
        ),
        # Norms of queries and keys, which SD 3.5 has.
        *(
            Rule(f"transformer_blocks.{{}}.{other}_{part}", f"joint_blocks.{{}}.{own}_{part}")
            for other, own in (
                ("attn.norm", "x_block.attn.ln"),
                ("attn2.norm", "x_block.attn2.ln"),
                ("attn.norm_added", "context_block.attn.ln"),
            )
            for part in "qk"
        ),
        *renamed(
            {
                "attn.to_out.0": "x_block.attn.proj",
                "attn.to_add_out": "context_block.attn.proj",
                "attn2.to_out.0": "x_block.attn2.proj",
                "norm1.linear": "x_block.adaLN_modulation.1",
                "ff.net.0.proj": "x_block.mlp.fc1",
                "ff.net.2": "x_block.mlp.fc2",
                "ff_context.net.0.proj": "context_block.mlp.fc1",
                "ff_context.net.2": "context_block.mlp.fc2",
            },
            within=("transformer_blocks.{}.", "joint_blocks.{}."),
        ),
        # Of the last block only the attention is used: its norm has a scale and a shift, which diffusers has
        # the other way round, where the others have six parts.
        Rule(
            "transformer_blocks.{}.norm1_context.linear",
            "joint_blocks.{}.context_block.adaLN_modulation.1",
            swapped_pair=True,
        ),
        *_embedding("time_text_embed.timestep_embedder", "t_embedder"),
        *_embedding("time_text_embed.text_embedder", "y_embedder"),
        Rule("pos_embed.proj", "x_embedder.proj"),
        Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True),
        Rule("proj_out", "final_layer.linear"),
    ),
    signs=(r"joint_blocks_\d+_(x_block|context_block)_",),
    labels=("stable-diffusion-3", "stable-diffusion-v3", "sd3"),
    keeps_names=True,
)

MOCHI = Family(
    name="mochi",
    title="Mochi",
    marks=("t5_yproj.weight", "blocks.0.attn.qkv_x.weight"),
    rules=(
        *fused("blocks.{}.attn.qkv_x", [f"transformer_blocks.{{}}.attn1.to_{p}" for p in "qkv"], QKV),
        *fused("blocks.{}.attn.qkv_y", [f"transformer_blocks.{{}}.attn1.add_{p}_proj" for p in "qkv"], QKV),
        *renamed(
            {
                "norm1.linear": "mod_x",
                "norm1_context.linear": "mod_y",
                "norm1_context.linear_1": "mod_y",  # in the last block
                "attn1.norm_q": "attn.q_norm_x",
                "attn1.norm_k": "attn.k_norm_x",
                "attn1.norm_added_q": "attn.q_norm_y",
                "attn1.norm_added_k": "attn.k_norm_y",
                "attn1.to_out.0": "attn.proj_x",
                "attn1.to_add_out": "attn.proj_y",
                "ff.net.0.proj": "mlp_x.w1",
                "ff.net.2": "mlp_x.w2",
                "ff_context.net.0.proj": "mlp_y.w1",
                "ff_context.net.2": "mlp_y.w2",
            },
            within=("transformer_blocks.{}.", "blocks.{}."),
        ),
        *renamed(
            {
                "patch_embed.proj": "x_embedder.proj",
                "time_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
                "time_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
                "time_embed.pooler.to_kv": "t5_y_embedder.to_kv",
                "time_embed.pooler.to_q": "t5_y_embedder.to_q",
                "time_embed.pooler.to_out": "t5_y_embedder.to_out",
                "time_embed.caption_proj": "t5_yproj",
                "proj_out": "final_layer.linear",
            }
        ),
        Rule("norm_out.linear", "final_layer.mod", swapped=True),
    ),
    signs=(r"blocks_\d+_attn_(qkv|proj)_[xy]$",),
    labels=("mochi",),
)

COSMOS_PREDICT_2 = Family(
    name="cosmos_predict2",
    title="Cosmos Predict 2",
    marks=("blocks.0.adaln_modulation_self_attn.1.weight", "x_embedder.proj.1.weight"),
    rules=(
        *(
            rule
            for other, own, norm, gate in (
                ("attn1", "self_attn", "norm1", "adaln_modulation_self_attn"),
                ("attn2", "cross_attn", "norm2", "adaln_modulation_cross_attn"),
            )
            for rule in renamed(
                {
                    f"{other}.to_q": f"{own}.q_proj",
                    f"{other}.to_k": f"{own}.k_proj",
                    f"{other}.to_v": f"{own}.v_proj",
                    f"{other}.to_out.0": f"{own}.output_proj",
                    f"{other}.norm_q": f"{own}.q_norm",
                    f"{other}.norm_k": f"{own}.k_norm",
                    f"{norm}.linear_1": f"{gate}.1",
                    f"{norm}.linear_2": f"{gate}.2",
                },
                within=("transformer_blocks.{}.", "blocks.{}."),
            )
        ),
        *renamed(
            {
                "norm3.linear_1": "adaln_modulation_mlp.1",
                "norm3.linear_2": "adaln_modulation_mlp.2",
                "ff.net.0.proj": "mlp.layer1",
                "ff.net.2": "mlp.layer2",
            },
            within=("transformer_blocks.{}.", "blocks.{}."),
        ),
        *renamed(
            {
                "patch_embed.proj": "x_embedder.proj.1",
                "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
                "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
                "time_embed.norm": "t_embedding_norm",
                "norm_out.linear_1": "final_layer.adaln_modulation.1",
                "norm_out.linear_2": "final_layer.adaln_modulation.2",
                "proj_out": "final_layer.linear",
            }
        ),
    ),
    signs=(r"blocks_\d+_adaln_modulation_", r"blocks_\d+_(self|cross)_attn_(output|q|k|v)_proj$"),
    labels=("cosmos", "anima"),
)

QWEN_IMAGE = Family(
    name="qwen_image",
    title="Qwen-Image",
    marks=("transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
    signs=(r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_",),
    labels=("qwen",),
    keeps_names=True,
)

HIDREAM = Family(
    name="hidream",
    title="HiDream",
    marks=("double_stream_blocks.0.block.attn1.to_q.weight",),
    signs=(r"(double|single)_stream_blocks_\d+_",),
    labels=("hidream",),
    keeps_names=True,
)

PIXART = Family(
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
    signs=(r"blocks_\d+_cross_attn_(kv|q)_linear$", r"y_embedder_y_proj_"),
    labels=("pixart",),
)

_KREA_BLOCKS = (
    ("transformer_blocks.{}.", "blocks.{}."),
    ("text_fusion.layerwise_blocks.{}.", "txtfusion.layerwise_blocks.{}."),
    ("text_fusion.refiner_blocks.{}.", "txtfusion.refiner_blocks.{}."),
)

KREA_2 = Family(
    name="krea2",
    title="Krea 2",
    marks=("txtfusion.projector.weight",),
    rules=(
        *(
            rule
            for within in _KREA_BLOCKS
            for rule in renamed(
                {
                    **{f"attn.to_{p}": f"attn.w{p}" for p in "qkv"},
                    "attn.to_gate": "attn.gate",
                    "attn.to_out.0": "attn.wo",
                    "attn.norm_q": "attn.qknorm.qnorm",
                    "attn.norm_k": "attn.qknorm.knorm",
                    **{f"ff.{name}": f"mlp.{name}" for name in ("gate", "up", "down")},
                    "norm1": "prenorm",
                    "norm2": "postnorm",
                },
                within=within,
            )
        ),
        # Some programs leave the number out.
        *(Rule(f"{other}attn.to_out", f"{own}attn.wo", alias=True) for other, own in _KREA_BLOCKS),
        *renamed(
            {
                "img_in": "first",
                "time_embed.linear_1": "tmlp.0",
                "time_embed.linear_2": "tmlp.2",
                "time_mod_proj": "tproj.1",
                "txt_in.norm": "txtmlp.0.scale",
                "txt_in.linear_1": "txtmlp.1",
                "txt_in.linear_2": "txtmlp.3",
                "text_fusion.projector": "txtfusion.projector",
                "final_layer.norm": "last.norm",
                "final_layer.linear": "last.linear",
            }
        ),
    ),
    signs=(
        r"txtfusion_",
        r"text_fusion_(layerwise|refiner)_blocks_",
        r"blocks_\d+_(attn_(w[qkvo]|gate|to_gate)|(mlp|ff)_(gate|up|down))$",
    ),
    labels=("krea-2", "krea2"),
)

KANDINSKY_5 = Family(
    name="kandinsky5",
    title="Kandinsky 5",
    marks=("visual_embeddings.in_layer.weight",),
    signs=(r"(visual|text)_transformer_blocks_\d+_",),
    labels=("kandinsky",),
    keeps_names=True,
)

ERNIE_IMAGE = Family(
    name="ernie_image",
    title="Ernie Image",
    marks=("layers.0.mlp.linear_fc2.weight",),
    signs=(r"layers_\d+_(mlp_linear_fc\d|self_attention_to_)",),
    labels=("ernie",),
    keeps_names=True,
)

_FEED_FORWARD = {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}

AURA_FLOW = Family(
    name="aura_flow",
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
    signs=(r"joint_transformer_blocks_\d+_", r"(double|single)_layers_\d+_(attn|mlp|mod)"),
    labels=("auraflow",),
)

ACE_STEP_15 = Family(
    name="ace_step_15",
    title="ACE-Step 1.5",
    marks=("decoder.layers.0.cross_attn.q_proj.weight", "tokenizer.audio_acoustic_proj.weight"),
    component="decoder.",
    signs=(r"layers_\d+_cross_attn_[qkvo]_proj$",),
    labels=("ace-step", "acestep", "ace_step"),
)

# Diffusers calls norm2 what is norm3 here and the other way round. Those names do not tell whose they are,
# so these two mean the model's own.
HUNYUAN_DIT = Family(
    name="hunyuan_dit",
    title="HunyuanDiT",
    marks=("blocks.0.attn1.Wqkv.weight", "mlp_t5.0.weight"),
    rules=(
        *fused("blocks.{}.attn1.Wqkv", [f"blocks.{{}}.attn1.to_{p}" for p in "qkv"], QKV),
        *fused("blocks.{}.attn2.kv_proj", [f"blocks.{{}}.attn2.to_{p}" for p in "kv"], KV),
        *renamed(
            {
                "attn1.to_out.0": "attn1.out_proj",
                "attn2.to_q": "attn2.q_proj",
                "attn2.to_out.0": "attn2.out_proj",
                **{f"attn{n}.norm_{part}": f"attn{n}.{part}_norm" for n in "12" for part in "qk"},
                "norm1.norm": "norm1",
                "norm1.linear": "default_modulation.1",
                "ff.net.0.proj": "mlp.fc1",
                "ff.net.2": "mlp.fc2",
            },
            within=("blocks.{}.", "blocks.{}."),
        ),
        *renamed(
            {
                "pos_embed.proj": "x_embedder.proj",
                "text_embedder.linear_1": "mlp_t5.0",
                "text_embedder.linear_2": "mlp_t5.2",
                "time_extra_emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
                "time_extra_emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
                "time_extra_emb.extra_embedder.linear_1": "extra_embedder.0",
                "time_extra_emb.extra_embedder.linear_2": "extra_embedder.2",
                **{f"time_extra_emb.pooler.{p}_proj": f"pooler.{p}_proj" for p in "kqvc"},
                "proj_out": "final_layer.linear",
            }
        ),
        Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True),
    ),
    signs=(r"blocks_\d+_attn1_Wqkv$", r"blocks_\d+_default_modulation_"),
    labels=("hunyuan-dit", "hunyuandit"),
)
