"""Tiny diffusion models of families that not every supported host has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._diffusion import COSMOS, FLUX, LTX, WAN

#: Name: (class, configuration).
NEWER: Mapping[str, tuple[str, dict[str, Any]]] = {
    "LTX-2": (
        "LTXAV",
        {
            **LTX,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "audio_in_channels": 8,
            "connector_attention_head_dim": 8,
            "connector_num_attention_heads": 2,
            "connector_num_layers": 1,
        },
    ),
    "ACE-Step 1.5": (
        "ACEStep15",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "num_dit_layers": 2,
            "num_lyric_layers": 1,
            "num_timbre_layers": 1,
            "num_tokenizer_layers": 1,
            "encoder_hidden_size": 32,
            "encoder_num_heads": 2,
            "encoder_intermediate_size": 48,
            "text_hidden_dim": 24,
            "fsq_dim": 32,
        },
    ),
    "Krea 2": (
        "Krea2",
        {
            "features": 256,
            "channels": 16,
            "patch": 2,
            "layers": 2,
            "heads": 2,
            "kvheads": 1,
            "txtlayers": 3,
            "txtdim": 24,
        },
    ),
    "Kandinsky 5": (
        "Kandinsky5",
        {
            "model_dim": 32,
            "axes_dims": (4, 6, 6),
            "time_dim": 16,
            "ff_dim": 48,
            "visual_embed_dim": 8,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
        },
    ),
    "Ernie Image": (
        "ErnieImage",
        {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 48},
    ),
    "Anima": ("Anima", {**COSMOS, "in_channels": 16}),
    "LongCat-Image": ("LongCatImage", {**FLUX, "guidance_embed": False, "vec_in_dim": None}),
    "MageFlow": (
        "MageFlow",
        {
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
            "in_channels": 16,
            "out_channels": 16,
        },
    ),
    "CogVideoX": (
        "CogVideoX_T2V",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 48,
            "time_embed_dim": 32,
            "text_embed_dim": 24,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 8,
        },
    ),
    "Boogu": (
        "Boogu",
        {
            "hidden_size": 48,
            "num_layers": 2,
            "num_double_stream_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "axes_dim_rope": (8, 4, 4),
            "axes_lens": (16, 16, 16),
            "instruction_feat_dim": 24,
        },
    ),
    "JoyImage": (
        "JoyImage",
        {
            "hidden_size": 48,
            "num_attention_heads": 2,
            "text_dim": 24,
            "num_layers": 2,
            "rope_dim_list": [4, 10, 10],
        },
    ),
    "Ideogram 4": (
        "Ideogram4",
        {
            "in_channels": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "intermediate_size": 48,
            "adaln_dim": 16,
            "llm_features_dim": 24,
            "mrope_section": (4, 2, 2),
        },
    ),
    "Lens": (
        "Lens",
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "enc_hidden_dim": 24,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    "PixelDiT": (
        "PixelDiTT2I",
        {
            "hidden_size": 48,
            "num_groups": 2,
            "pixel_attn_hidden_size": 32,
            "pixel_num_groups": 2,
            "patch_depth": 2,
            "pixel_depth": 1,
            "patch_size": 4,
            "txt_embed_dim": 24,
            "txt_max_length": 8,
        },
    ),
    "SeedVR2": (
        "SeedVR2",
        {
            "norm_eps": 1e-5,
            "num_layers": 2,
            "mlp_type": "normal",
            "vid_dim": 48,
            "txt_in_dim": 24,
            "heads": 2,
            "head_dim": 24,
            "mm_layers": 1,
            "rope_dim": 24,
        },
    ),
    "HiDream O1": (
        "HiDreamO1",
        {
            "text_config_overrides": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "vocab_size": 64,
            },
            "vision_config_overrides": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "depth": 1,
                "num_position_embeddings": 16,
            },
        },
    ),
    "Wan 2.1 SCAIL": ("WAN21_SCAIL", {**WAN, "in_dim": 20}),
    "Wan Animate 2": ("WAN_Animate2", WAN),
    "Wan 2.2 WanDancer": ("WAN22_WanDancer", {**WAN, "in_dim": 36}),
}
