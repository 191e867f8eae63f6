"""Small models of real architectures, which ComfyUI's stock loaders accept.

    python -m lab.models tiny_sd15 ...

Each is built from ComfyUI's own class with few layers and random weights, so key names, shapes and fused
projections are the real ones while a picture takes a second on one core. What a loader reads from the keys
may be shrunk (depth, width where it follows from a shape); what it assumes may not (SD1.5 needs 320
channels, a complete CLIP-L). Models that cannot be made small, like Flux, are absent. Pictures of random
weights are noise, and that is enough: a test asks whether they change, and how.

Values are deterministic: each tensor has a generator of its own, seeded from its name, so that adding a
tensor to a model never changes the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import paths
from lab.arguments import called

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

VERSION = "1"
"""Goes into every file; raise it when a recipe changes, and existing files are built anew."""

FILES: dict[str, tuple[str, ...]] = {
    "tiny_sd15": ("checkpoints/tiny_sd15.safetensors",),
    "tuned_sd15": ("checkpoints/tuned_sd15.safetensors",),
    "full_sd15": ("checkpoints/full_sd15.safetensors",),
    "tiny_sd3": ("diffusion_models/tiny_sd3.safetensors",),
    "tiny_wan": ("diffusion_models/tiny_wan.safetensors",),
    "tiny_hyvid": ("diffusion_models/tiny_hyvid.safetensors",),
    "clip_l": ("text_encoders/clip_l.safetensors",),
    "taesd": ("vae_approx/taesd_encoder.safetensors", "vae_approx/taesd_decoder.safetensors"),
    "taesd3": ("vae_approx/taesd3_encoder.safetensors", "vae_approx/taesd3_decoder.safetensors"),
}
"""Model name -> its files below the models folder."""

FOR_DEMO = ("tiny_sd15", "tuned_sd15")
FOR_TESTS = ("tiny_sd15", "tuned_sd15", "tiny_sd3", "tiny_wan", "tiny_hyvid", "clip_l", "taesd", "taesd3")


def missing(names: Iterable[str]) -> list[str]:
    """Those of `names` that are not there yet, or were built by another version of the recipes."""
    return [name for name in names if not all(map(_is_current, _files(name)))]


def ensure(names: Iterable[str]) -> None:
    """Build what is missing, in a process of its own: the caller need not import torch or ComfyUI.

    Raises RuntimeError when a model cannot be built; the reason is on the terminal by then.
    """
    to_build = missing(names)
    if not to_build:
        return
    command = [sys.executable, "-m", "lab.models", *to_build]
    if subprocess.run(command, env=paths.lab_environment(), check=False).returncode:
        raise RuntimeError(f"The test models could not be built: {', '.join(to_build)}")


def build(name: str) -> None:
    """Build one model's files, replacing what is there. Needs ComfyUI in this process (`prime_comfy`)."""
    files = _files(name)
    parts = RECIPES[name]()
    if set(parts) != {file.name for file in files}:
        raise AssertionError(f"the recipe of {name} makes {sorted(parts)}")
    for file in files:
        write_tensors(file, parts[file.name], {"lab_version": VERSION})


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file so that no half-written one is ever seen under its name."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part, metadata)
        _order_header(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _order_header(path: Path) -> None:
    """Sort the header's metadata, which safetensors writes in random order: equal files have equal bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) > length:
            raise AssertionError("the header grew")
        file.seek(8)
        file.write(ordered.ljust(length))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in a safetensors file's header; empty when the file is absent or not one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, OverflowError, MemoryError):
        return {}
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _files(name: str) -> list[Path]:
    return [paths.MODELS / file for file in FILES[name]]


def _is_current(path: Path) -> bool:
    return read_metadata(path).get("lab_version") == VERSION


def _generator(name: str, seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ seed) & 0x7FFFFFFF)


def _fill(module: torch.nn.Module, seed: int) -> Tensors:
    """Values that keep activations finite at any depth: norms 1, biases small, weights N(0, 1/fan_in)."""
    import torch

    filled: Tensors = {}
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            is_index = "position_ids" in key
            row = torch.arange(tensor.shape[-1], dtype=tensor.dtype) if is_index else None
            filled[key] = torch.zeros_like(tensor) if row is None else row.expand(tensor.shape)
        elif tensor.ndim <= 1:
            is_norm = key.endswith(("weight", "scale", "gamma"))
            noise = torch.randn(tensor.shape, generator=_generator(key, seed))
            filled[key] = torch.ones(tensor.shape) if is_norm else noise * 0.02
        else:
            noise = torch.randn(tensor.shape, generator=_generator(key, seed))
            filled[key] = noise * tensor[0].numel() ** -0.5
    return filled


def _half(tensors: Tensors) -> Tensors:
    return {key: t.half() if t.is_floating_point() else t for key, t in tensors.items()}


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def _class_arguments() -> dict[str, Any]:
    """What every model class of ComfyUI takes; weights stay uninitialised, they are filled afterwards."""
    import comfy.ops
    import torch

    operations = comfy.ops.disable_weight_init
    return {"device": "cpu", "dtype": torch.float32, "operations": operations}


def _clip_l() -> Tensors:
    from comfy.clip_model import CLIPTextModel

    config = json.loads((paths.COMFYUI / "comfy" / "sd1_clip_config.json").read_text("utf-8"))
    return _fill(CLIPTextModel(config, **_class_arguments()), 2)


def _unet_sd15(*, full: bool) -> Tensors:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    if full:
        depths: dict[str, Any] = {
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1] * 6 + [0, 0],
            "transformer_depth_output": [1] * 9 + [0, 0, 0],
        }
    else:  # two levels of 320 channels; one residual block in each, a transformer in the first
        depths = {
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 1],
            "transformer_depth": [1, 0],
            "transformer_depth_output": [1, 1, 0, 0],
        }
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_heads=8,
        use_spatial_transformer=True,
        use_linear_in_transformer=False,
        context_dim=768,
        transformer_depth_middle=1,
        legacy=False,
        **depths,
        **_class_arguments(),
    )
    return _fill(unet, 1)


def _taesd_tensors(latent_channels: int) -> Tensors:
    """The small autoencoder, its last layer scaled and shifted by what was found to centre the colours.

    Most pixels must lie between black and white, since a difference is not seen where both pictures are cut
    off.
    """
    import torch
    from comfy.taesd.taesd import TAESD

    model = TAESD(latent_channels=latent_channels)
    tensors = _fill(model, 3)
    last = f"taesd_decoder.{len(model.taesd_decoder) - 1}"
    tensors[f"{last}.weight"] *= 0.45
    tensors[f"{last}.bias"] = torch.tensor([0.72, 1.19, 0.96])
    return tensors


def _autoencoder_kl() -> Tensors:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return _fill(AutoencoderKL(ddconfig=config, embed_dim=4), 3)


def _sd15(*, full: bool) -> dict[str, Tensors]:
    """An SD1.5 checkpoint; the tiny one has fewer UNet levels and TAESD in the place of the VAE."""
    vae = _autoencoder_kl() if full else _taesd_tensors(4)
    tensors = (
        _prefixed("model.diffusion_model.", _unet_sd15(full=full))
        | _prefixed("cond_stage_model.transformer.", _clip_l())
        | _prefixed("first_stage_model.", vae)
    )
    return {f"{'full' if full else 'tiny'}_sd15.safetensors": _half(tensors)}


def _tuned_sd15() -> dict[str, Tensors]:
    """The tiny checkpoint as a fine-tune leaves it: changes of rank 4 in attention and in convolutions."""
    import torch

    (tensors,) = _sd15(full=False).values()
    for key, tensor in tensors.items():
        changed = "attn" in key or "in_layers.2" in key or "self_attn" in key
        if not changed or not key.endswith("weight") or tensor.ndim < 2:
            continue
        rows, columns = tensor.shape[0], tensor[0].numel()
        up = torch.randn((rows, 4), generator=_generator(key, 7))
        down = torch.randn((4, columns), generator=_generator(key, 8))
        size = float(tensor.float().norm()) / float((up @ down).norm())
        tensors[key] = (tensor.float() + 0.4 * size * (up @ down).reshape(tensor.shape)).half()
    return {"tuned_sd15.safetensors": tensors}


def _sd3() -> dict[str, Tensors]:
    """MMDiT of depth 2, whose query, key and value are one weight that adapters address by slices."""
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    model = OpenAISignatureMMDITWrapper(
        input_size=None,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        depth=2,
        num_patches=1024,
        pos_embed_max_size=32,
        pos_embed_scaling_factor=None,
        adm_in_channels=2048,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 128},
        },
        **_class_arguments(),
    )
    return {"tiny_sd3.safetensors": _half(_fill(model, 4))}


def _wan() -> dict[str, Tensors]:
    """Wan 2.1 text to video, with separate query, key and value."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v",
        patch_size=(1, 2, 2),
        text_len=512,
        text_dim=4096,
        in_dim=16,
        out_dim=16,
        dim=128,
        ffn_dim=256,
        freq_dim=256,
        num_heads=1,
        num_layers=2,
        **_class_arguments(),
    )
    return {"tiny_wan.safetensors": _half(_fill(model, 5))}


def _hyvid() -> dict[str, Tensors]:
    """HunyuanVideo with one double and one single block: Flux's block layout in a size that fits."""
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    arguments = {
        "image_model": "hunyuan_video",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
        "vec_in_dim": 768,
        "context_in_dim": 4096,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56],
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": True,
        "byt5": False,
        "meanflow": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        **_class_arguments(),
    }
    model = called(lambda given: HunyuanVideo(**given), arguments)
    return {"tiny_hyvid.safetensors": _half(_fill(model, 6))}


def _text_encoder() -> dict[str, Tensors]:
    return {"clip_l.safetensors": _half(_clip_l())}


def _taesd(name: str, latent_channels: int) -> dict[str, Tensors]:
    """The small autoencoder, as the two files that VAELoader joins."""
    tensors = _half(_taesd_tensors(latent_channels))
    files: dict[str, Tensors] = {}
    for half in ("encoder", "decoder"):
        prefix = f"taesd_{half}."
        part = {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
        files[f"{name}_{half}.safetensors"] = part
    return files


RECIPES: dict[str, Callable[[], dict[str, Tensors]]] = {
    "tiny_sd15": lambda: _sd15(full=False),
    "tuned_sd15": _tuned_sd15,
    "full_sd15": lambda: _sd15(full=True),
    "tiny_sd3": _sd3,
    "tiny_wan": _wan,
    "tiny_hyvid": _hyvid,
    "clip_l": _text_encoder,
    "taesd": lambda: _taesd("taesd", 4),
    "taesd3": lambda: _taesd("taesd3", 16),
}
"""Model name -> what makes its files: file name -> tensors."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab.models", description="Build the test models.")
    parser.add_argument(
        "names",
        nargs="*",
        default=list(FOR_TESTS),
        help=f"which (default: what the tests need): {', '.join(FILES)}",
    )
    names = parser.parse_args(arguments).names
    unknown = [name for name in names if name not in FILES]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(FILES)}")
    to_build = missing(names)
    if to_build:
        from lab.prime import prime_comfy

        prime_comfy()
    for name in to_build:
        start = time.monotonic()
        build(name)
        size = sum(file.stat().st_size for file in _files(name)) / 1e6
        print(f"built {name} ({size:,.0f} MB) in {time.monotonic() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
