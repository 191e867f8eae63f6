"""The built-in presets: which classes of layers and which names each of them trains."""

from __future__ import annotations

from typing import Any

from .config_sdk import AlgoOverride, PresetConfig

#: Blocks of diffusion transformers, and what is trained around them.
_TRANSFORMERS = [
    "Transformer2DModel",
    "HunYuanDiTBlock",
    "DoubleStreamBlock",
    "SingleStreamBlock",
    "SingleDiTBlock",
    "MMDoubleStreamBlock",
    "MMSingleStreamBlock",
    "WanAttentionBlock",
    "HunyuanVideoTransformerBlock",
    "HunyuanVideoSingleTransformerBlock",
    "JointTransformerBlock",
    "FinalLayer",
    "QwenImageTransformerBlock",
    "LensTransformerBlock",
    "Ideogram4TransformerBlock",
    "ZImageTransformerBlock",
    "AceStepEncoderLayer",
    "AceStepDiTLayer",
    "TextFusionBlock",
    "Block",
    "PatchEmbed",
    "TimestepEmbedding",
    "LLMAdapterTransformerBlock",
]
_RESAMPLING = ["Downsample2D", "Upsample2D"]

FULL_UNET_MODULES = [_TRANSFORMERS[0], "ResnetBlock2D", *_RESAMPLING, *_TRANSFORMERS[1:]]
FULL_UNET_NAMES = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
FULL_TEXT_ENCODER_MODULES = [
    "CLIPAttention",
    "CLIPSdpaAttention",
    "CLIPMLP",
    "MT5Block",
    "BertLayer",
    "Gemma2Attention",
    "Gemma2FlashAttention2",
    "Gemma2SdpaAttention",
    "Gemma2MLP",
    "Qwen3Attention",
    "Qwen3FlashAttention2",
    "Qwen3SdpaAttention",
    "Qwen3MLP",
]
_ATTENTIONS_OF_ENCODERS = [
    "CLIPAttention",
    "CLIPSdpaAttention",
    "BertAttention",
    "MT5LayerSelfAttention",
    "Gemma2Attention",
    "Gemma2FlashAttention2",
    "Gemma2SdpaAttention",
]


def _preset(
    convolutions: bool, modules: list[str], names: list[str], encoder: list[str], **more: Any
) -> PresetConfig:
    own = {"text_encoder_target_name": [], **more}
    return PresetConfig(
        enable_conv=convolutions,
        unet_target_module=modules,
        unet_target_name=names,
        text_encoder_target_module=encoder,
        **own,
    )


_ON_INPUT = AlgoOverride(options={"train_on_input": True})
BUILTIN_PRESET_CONFIGS: dict[str, PresetConfig] = {
    "full": _preset(True, FULL_UNET_MODULES, FULL_UNET_NAMES, FULL_TEXT_ENCODER_MODULES),
    "full-lin": _preset(
        False,
        [_TRANSFORMERS[0], "ResnetBlock2D", *_TRANSFORMERS[1:]],
        FULL_UNET_NAMES[2:],
        FULL_TEXT_ENCODER_MODULES,
    ),
    "attn-mlp": _preset(False, _TRANSFORMERS, [], FULL_TEXT_ENCODER_MODULES),
    "attn-only": _preset(False, ["CrossAttention", "SelfAttention"], [], _ATTENTIONS_OF_ENCODERS),
    "unet-only": _preset(True, FULL_UNET_MODULES, FULL_UNET_NAMES, []),
    "unet-transformer-only": _preset(False, _TRANSFORMERS, [], []),
    "unet-convblock-only": _preset(True, ["ResnetBlock2D", *_RESAMPLING], FULL_UNET_NAMES[:2], []),
    "ia3": _preset(
        False,
        [],
        ["to_k", "to_v", "ff.net.2"],
        [],
        text_encoder_target_name=["k_proj", "v_proj", "mlp.fc2"],
        name_algo_map={"mlp.fc2": _ON_INPUT, "ff.net.2": _ON_INPUT},
    ),
}
PRESET: dict[str, dict[str, Any]] = {
    name: preset.to_dict() for name, preset in BUILTIN_PRESET_CONFIGS.items()
}


def list_builtin_presets() -> dict[str, PresetConfig]:
    """The built-in presets by name."""
    return dict(BUILTIN_PRESET_CONFIGS)
