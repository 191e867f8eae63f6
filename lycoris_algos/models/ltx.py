"""LTX-Video, and LTX-2, which adds sound: what diffusers calls their layers."""

from __future__ import annotations

from ._base import Family, Rule, renamed


def _gate(other: str, native: str) -> tuple[Rule, ...]:
    """The layers of an adaptive norm with a single embedding."""
    return renamed(
        {
            "linear": "linear",
            "emb.timestep_embedder.linear_1": "emb.timestep_embedder.linear_1",
            "emb.timestep_embedder.linear_2": "emb.timestep_embedder.linear_2",
        },
        within=(f"{other}.", f"{native}."),
    )


def _norms(*attentions: str) -> tuple[Rule, ...]:
    """Those of queries and keys."""
    return tuple(
        Rule(f"transformer_blocks.{{}}.{name}.norm_{part}", f"transformer_blocks.{{}}.{name}.{part}_norm")
        for name in attentions
        for part in "qk"
    )


_VIDEO = (*_norms("attn1", "attn2"), Rule("proj_in", "patchify_proj"), *_gate("time_embed", "adaln_single"))

LTXV = Family(
    name="ltxv",
    title="LTX-Video",
    marks=("patchify_proj.weight", "adaln_single.linear.weight"),
    rules=_VIDEO,
    labels=("ltx",),
    keeps_names=True,
)

# Its models bear LTX-Video's marks as well, so it stands before that.
LTX_2 = Family(
    name="ltx2",
    title="LTX-2",
    marks=("patchify_proj.weight", "audio_patchify_proj.weight"),
    rules=(
        *_VIDEO,
        *_norms("audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"),
        *renamed(
            {
                "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
                "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
            },
            within=("transformer_blocks.{}.", "transformer_blocks.{}."),
        ),
        Rule("audio_proj_in", "audio_patchify_proj"),
        *_gate("audio_time_embed", "audio_adaln_single"),
        *_gate("prompt_adaln", "prompt_adaln_single"),
        *_gate("audio_prompt_adaln", "audio_prompt_adaln_single"),
        *_gate("av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
        *_gate("av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
        *_gate("av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
        *_gate("av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
    ),
    signs=(r"transformer_blocks_\d+_(audio_(attn\d|ff|to_video_attn)|video_to_audio_attn)_",),
    labels=("ltx-2", "ltx2", "ltxav"),
    keeps_names=True,
)
