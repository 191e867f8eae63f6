"""The models: tiny ones that run, and ones of full width without memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import tiny
import torch
import zoo

from ._files import (
    flux_files,
    fused_family,
    hunyuan_files,
    qwen_files,
    text_files,
    unet_files,
    wan_files,
    z_image_files,
)
from ._layers import Shapes, Subject, native
from ._names import chroma, flux_2, hunyuan_dit, lumina_2, sd3


def _meta(name: str, **config: Any) -> Callable[[], Any]:
    """A MODEL of full width without memory: its keys and shapes are real, its values are not there."""
    return lambda: zoo.new_model(name, {**config, "dtype": torch.float16}, "meta")


def _meta_clip(module: str, build: Callable[[Any], Any]) -> Callable[[], Any]:
    """A CLIP of full size without memory."""
    return lambda: zoo.new_clip(build(importlib.import_module(module)))


_META = {"device": "meta", "dtype": torch.float16}
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
}
_LUMINA = {"patch_size": 2, "in_channels": 16, "qk_norm": True, "rope_theta": 10000.0}


@cache
def _tiny(name: str) -> tuple[Any, Any]:
    return tiny.load_model(name)


def _sd15_config() -> Mapping[str, Any]:
    return dict(_tiny("tiny_sd15")[0].model.model_config.unet_config)


_SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "legacy": False,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "num_head_channels": 64,
}


def _sdxl_config() -> Mapping[str, Any]:
    return dict(load(next(s for s in SUBJECTS if s.title == "SDXL")).model.model_config.unet_config)


@cache
def load(subject: Subject) -> Any:
    """The MODEL or CLIP of ``subject``; once."""
    return subject.load()


def forget() -> None:
    """Drops the models: ComfyUI complains when they go down with the interpreter."""
    load.cache_clear()
    _tiny.cache_clear()


def shapes_of(subject: Subject) -> Shapes:
    """Its parameters without the model's prefix."""
    loaded = load(subject)
    inner = loaded.cond_stage_model if subject.text else loaded.model
    return {
        key.removeprefix(subject.prefix): tuple(value.shape)
        for key, value in inner.state_dict().items()
        if key.startswith(subject.prefix)
    }


_CLIP_L = ("clip_l", "", "lora_te1_", "text_encoder.")
_CLIP_G = ("clip_g", "", "lora_te2_", "text_encoder_2.")

SUBJECTS: tuple[Subject, ...] = (
    Subject("SD 1.5 (tiny)", lambda: _tiny("tiny_sd15")[0], unet_files(_sd15_config)),
    Subject("SDXL", _meta("SDXL", **_SDXL), unet_files(_sdxl_config)),
    Subject("SD 3 (tiny)", lambda: _tiny("tiny_sd3")[0], fused_family(sd3)),
    Subject(
        "SD 3.5",
        _meta(
            "SD3",
            input_size=None,
            patch_size=2,
            out_channels=16,
            depth=24,
            num_patches=36864,
            pos_embed_max_size=192,
            adm_in_channels=2048,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 1536},
            },
            qk_norm="rms",
            x_block_self_attn_layers=[0, 1],
        ),
        fused_family(sd3),
    ),
    Subject(
        "HunyuanDiT",
        _meta("HunyuanDiT", depth=4, hidden_size=1408, mlp_ratio=4.3637, num_heads=16),
        fused_family(hunyuan_dit),
    ),
    Subject(
        "Flux",
        _meta("Flux", **_FLUX, vec_in_dim=768, depth=19, depth_single_blocks=38),
        flux_files,
    ),
    Subject(
        "Chroma",
        _meta(
            "Chroma",
            **{**_FLUX, "in_channels": 64, "out_channels": 64},
            depth=2,
            depth_single_blocks=2,
            in_dim=64,
            out_dim=3072,
            hidden_dim=5120,
            n_layers=5,
        ),
        fused_family(chroma),
    ),
    Subject(
        "Flux 2",
        _meta(
            "Flux2",
            **{
                **_FLUX,
                "in_channels": 128,
                "out_channels": 128,
                "patch_size": 1,
                "context_in_dim": 15360,
                "hidden_size": 6144,
                "mlp_ratio": 3.0,
                "num_heads": 48,
                "axes_dim": [32, 32, 32, 32],
                "theta": 2000,
                "qkv_bias": False,
            },
            guidance_embed=True,
            vec_in_dim=None,
            depth=2,
            depth_single_blocks=2,
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
        ),
        fused_family(flux_2),
    ),
    Subject("HunyuanVideo (tiny)", lambda: _tiny("tiny_hyvid")[0], hunyuan_files),
    Subject("Wan 2.1 (tiny)", lambda: _tiny("tiny_wan")[0], wan_files),
    Subject(
        "Wan 2.1 image to video",
        _meta(
            "WAN21_I2V",
            dim=5120,
            out_dim=16,
            num_heads=40,
            ffn_dim=13824,
            num_layers=2,
            patch_size=(1, 2, 2),
            freq_dim=256,
            window_size=(-1, -1),
            qk_norm=True,
            cross_attn_norm=True,
            eps=1e-6,
        ),
        wan_files,
    ),
    Subject(
        "Z-Image",
        _meta(
            "ZImage",
            **_LUMINA,
            cap_feat_dim=2560,
            n_layers=30,
            n_heads=30,
            n_kv_heads=30,
            axes_dims=[32, 48, 48],
            axes_lens=[1536, 512, 512],
            ffn_dim_multiplier=8.0 / 3.0,
            z_image_modulation=True,
            time_scale=1000.0,
        ),
        z_image_files,
    ),
    Subject(
        "Lumina 2",
        _meta(
            "Lumina2",
            **_LUMINA,
            dim=2304,
            cap_feat_dim=2304,
            n_layers=26,
            n_heads=24,
            n_kv_heads=8,
            axes_dims=[32, 32, 32],
            axes_lens=[300, 512, 512],
            ffn_dim_multiplier=4.0,
        ),
        fused_family(lumina_2),
    ),
    Subject("Qwen-Image", _meta("QwenImage", in_channels=64, num_layers=60), qwen_files),
    Subject(
        "HiDream",
        _meta(
            "HiDream",
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            caption_channels=[4096, 4096],
            in_channels=16,
            llama_layers=[0, 1],
            max_resolution=[128, 128],
            num_activated_experts=2,
            num_attention_heads=20,
            num_routed_experts=4,
            out_channels=16,
            patch_size=2,
            text_emb_dim=2048,
            axes_dims_rope=[64, 32, 32],
        ),
        fused_family(native),
    ),
    Subject(
        "CLIP of SD 1.5 (real)",
        lambda: _tiny("tiny_sd15")[1],
        text_files(
            ("clip_l", "", "lora_te_", "text_encoder."), own_names={"lora:": "clip_l", "lycoris_": "clip_l"}
        ),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of SDXL",
        _meta_clip("comfy.sdxl_clip", lambda module: module.SDXLClipModel(**_META)),
        text_files(
            _CLIP_L,
            _CLIP_G,
            own_names={
                "clip_l.": "clip_l",
                "clip_g.": "clip_g",
                "lora:clip_B.": "clip_l",
                "lora:clip_bigG.": "clip_g",
            },
        ),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of SD 3",
        _meta_clip(
            "comfy.text_encoders.sd3_clip",
            lambda module: module.SD3ClipModel(dtype_t5=torch.float16, **_META),
        ),
        text_files(_CLIP_L, _CLIP_G, ("t5xxl", "", "lora_te3_", "text_encoder_3.")),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of Flux",
        _meta_clip(
            "comfy.text_encoders.flux",
            lambda module: module.FluxClipModel(dtype_t5=torch.float16, **_META),
        ),
        text_files(
            _CLIP_L,
            ("t5xxl", "", "lora_te3_", "text_encoder_2."),
            own_names={"clip_l.": "clip_l", "t5.": "t5xxl"},
        ),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of HunyuanVideo",
        _meta_clip(
            "comfy.text_encoders.hunyuan_video",
            lambda module: module.HunyuanVideoClipModel(dtype_llama=torch.float16, **_META),
        ),
        text_files(
            ("llama", "model.", "lora_te1_", "text_encoder."), ("clip_l", "", "lora_te2_", "text_encoder_2.")
        ),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of Qwen-Image",
        _meta_clip(
            "comfy.text_encoders.qwen_image",
            lambda module: module.te(dtype_llama=torch.float16)(**_META),
        ),
        text_files(("qwen25_7b", "model.", "lora_te_", "text_encoder.")),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of Lumina 2",
        _meta_clip(
            "comfy.text_encoders.lumina2",
            lambda module: module.te(dtype_llama=torch.float16)(**_META),
        ),
        text_files(("gemma2_2b", "model.", "lora_te_", "text_encoder.")),
        prefix="",
        text=True,
    ),
)
