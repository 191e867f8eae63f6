"""Tiny text encoders: ComfyUI's classes, and the numbers that their configurations want."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

_CLIP = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
    "pad_token_id": 0,
    "vocab_size": 64,
    "max_position_embeddings": 16,
    "num_positions": 16,
    "layer_norm_eps": 1e-5,
    "type_vocab_size": 2,
}
_T5 = {
    "d_ff": 48,
    "d_kv": 8,
    "d_model": 32,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
    "num_heads": 4,
    "num_layers": 2,
    "vocab_size": 64,
}
_LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

#: ComfyUI's name of the encoder: (module and name of the class, configuration).
ENCODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "clip_l": ("comfy.clip_model.CLIPTextModel", _CLIP),
    "hydit_clip": ("comfy.text_encoders.bert.BertModel", _CLIP),
    "t5xxl": ("comfy.text_encoders.t5.T5", _T5),
    "umt5xxl": ("comfy.text_encoders.t5.T5", {**_T5, "model_type": "umt5"}),
    "llama": ("comfy.text_encoders.llama.Llama2", _LLAMA),
    "qwen25_7b": ("comfy.text_encoders.llama.Qwen25_3B", _LLAMA),
    "qwen3_4b": ("comfy.text_encoders.llama.Qwen3_4B", _LLAMA),
    "gemma2_2b": ("comfy.text_encoders.llama.Gemma2_2B", _LLAMA),
    "mistral3_24b": ("comfy.text_encoders.llama.Mistral3Small24B", _LLAMA),
    "qwen3_06b": ("comfy.text_encoders.llama.Qwen3_06B", _LLAMA),
    "gemma3_12b": ("comfy.text_encoders.llama.Gemma3_12B", _LLAMA),
}


def has_encoder(name: str) -> bool:
    """Whether the host has this one of ``ENCODERS``."""
    return _class(name) is not None


def encoder(name: str) -> Any:
    """ComfyUI's module of text encoders with this one in it."""
    import comfy.sd1_clip

    stage = torch.nn.Module()
    stage.add_module(
        name,
        comfy.sd1_clip.SDClipModel(
            device="cpu",
            dtype=torch.float32,
            textmodel_json_config=dict(ENCODERS[name][1]),
            model_class=_class(name),
        ),
    )
    return stage


def _class(name: str) -> Any:
    module, _, kind = ENCODERS[name][0].rpartition(".")
    return getattr(importlib.import_module(module), kind, None)
