"""Example adapter files for tiny_sd15, as a trainer would have written them.

    python -m lab.adapters

The layers are those a kohya training of SD1.5 addresses, under kohya's names. The names are not typed in
here: they are read off the checkpoint through ComfyUI's own key maps, so that a file can only name layers
that exist. Factors are random but deterministic, and scaled so that every layer's delta is a fixed share of
the weight it changes: large enough for a visibly different picture at strength 1, small enough for finite
activations at strength 2.
"""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import paths
from lab.models import read_metadata, write_tensors

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
    Shapes = Mapping[str, tuple[int, ...]]

VERSION = "1"
"""Goes into every file; raise it when a recipe changes, and existing files are written anew."""

RANK = 4
ALPHA = 2.0
"""Not the rank, so that forgetting the scale alpha/rank, or applying it twice, shows."""
FACTOR = 8
SHARE = 0.06
"""Root mean square of a delta, as a share of that of the weight."""
TRIGGER = "lycotoken"

ATTENTION = re.compile(
    r"lora_unet_(down_blocks|mid_block|up_blocks)_.*attentions_.*"
    r"(to_q|to_k|to_v|to_out_0|ff_net_0_proj|ff_net_2|proj_in|proj_out)$"
)
RESNETS = re.compile(r"lora_unet_(down_blocks|mid_block|up_blocks)_.*resnets_\d+_(conv1|conv2)$")
TEXT_ENCODER = re.compile(r"lora_te_text_model_encoder_layers_.*(_proj|fc1|fc2)$")


@dataclass(frozen=True)
class Example:
    """One file: which algorithm makes the tensors, and which layers it covers."""

    file: str
    algo: str
    make: Callable[[str, tuple[int, ...], _Noise], Tensors]
    layers: tuple[re.Pattern[str], ...]


class _Noise:
    """Normal values whose seed is the tensor's name, so that no tensor's values depend on another's."""

    def __init__(self, seed: str) -> None:
        self._seed = seed

    def __call__(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        import torch

        seed = zlib.crc32(f"{self._seed}/{name}".encode()) & 0x7FFFFFFF
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _target(shape: tuple[int, ...]) -> float:
    """Root mean square of the delta for a weight of this shape (the models' weights have 1/sqrt(fan_in))."""
    return SHARE / math.sqrt(math.prod(shape[1:]))


def _lokr(layer: str, shape: tuple[int, ...], noise: _Noise) -> Tensors:
    """w1 complete, w2 = w2_a @ w2_b; a delta's entry is w1's times a sum of RANK products."""
    rows, columns = shape[0], shape[1]
    if rows % FACTOR or columns % FACTOR:
        raise AssertionError(f"{layer}: {shape} is not divisible by {FACTOR}")
    kernel = math.prod(shape[2:])
    part = _target(shape) / (ALPHA / RANK * math.sqrt(RANK))
    w2 = math.sqrt(part)
    return {
        "lokr_w1": noise(f"{layer}.lokr_w1", (FACTOR, FACTOR), 1.0),
        "lokr_w2_a": noise(f"{layer}.lokr_w2_a", (rows // FACTOR, RANK), w2),
        "lokr_w2_b": noise(f"{layer}.lokr_w2_b", (RANK, columns // FACTOR * kernel), w2),
    }


def _loha(layer: str, shape: tuple[int, ...], noise: _Noise) -> Tensors:
    """The product, entry by entry, of two matrices of rank RANK."""
    scale = (_target(shape) / (ALPHA / RANK * RANK)) ** 0.25
    tensors: Tensors = {}
    for half in ("w1", "w2"):
        for side, size in (("a", (shape[0], RANK)), ("b", (RANK, math.prod(shape[1:])))):
            name = f"hada_{half}_{side}"
            tensors[name] = noise(f"{layer}.{name}", size, scale)
    return tensors


def _locon(layer: str, shape: tuple[int, ...], noise: _Noise) -> Tensors:
    """LoRA with a convolution's kernel in the down part."""
    scale = math.sqrt(_target(shape) / (ALPHA / RANK * math.sqrt(RANK)))
    ones = (1,) * len(shape[2:])
    return {
        "lora_down.weight": noise(f"{layer}.lora_down", (RANK, *shape[1:]), scale),
        "lora_up.weight": noise(f"{layer}.lora_up", (shape[0], RANK, *ones), scale),
    }


EVERY_LAYER = (ATTENTION, TEXT_ENCODER)
EXAMPLES = (
    Example("loras/tiny_lokr.safetensors", "lokr", _lokr, EVERY_LAYER),
    Example("loras/tiny_loha.safetensors", "loha", _loha, EVERY_LAYER),
    Example("loras/tiny_locon.safetensors", "locon", _locon, (*EVERY_LAYER, RESNETS)),
    Example("lycoris/tiny_lokr_unet.safetensors", "lokr", _lokr, (ATTENTION,)),
)
"""The last has its own folder and no text encoder layers: both occur in practice."""


def ensure() -> None:
    """Write the files that are missing, in a process of its own. Needs the model tiny_sd15.

    Raises RuntimeError when that fails; the reason is on the terminal by then.
    """
    if not any(map(_is_missing, EXAMPLES)):
        return
    command = [sys.executable, "-m", "lab.adapters"]
    if subprocess.run(command, env=paths.lab_environment(), check=False).returncode:
        raise RuntimeError("The example adapter files could not be written.")


def _is_missing(example: Example) -> bool:
    return read_metadata(paths.MODELS / example.file).get("lab_version") != VERSION


def layer_shapes(checkpoint: Path) -> Shapes:
    """Every name by which an adapter file can address a layer of the checkpoint -> that weight's shape.

    Needs ComfyUI in this process (`prime_comfy`).
    """
    import comfy.lora
    import comfy.sd

    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(
        str(checkpoint), output_vae=False, output_clip=True
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for module, key_map in (
        (model.model, comfy.lora.model_lora_keys_unet(model.model, {})),
        (clip.cond_stage_model, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})),
    ):
        weights = module.state_dict()
        shapes.update(
            (name, tuple(weights[key].shape))
            for name, key in key_map.items()
            if isinstance(key, str) and key in weights
        )
    return shapes


def write_example(example: Example, shapes: Shapes, folder: Path) -> Path:
    """Write one example below `folder`."""
    import torch

    noise = _Noise(example.file)
    tensors: Tensors = {}
    for layer, shape in shapes.items():
        if len(shape) < 2 or not any(pattern.match(layer) for pattern in example.layers):
            continue
        parts = example.make(layer, shape, noise) | {"alpha": torch.tensor(ALPHA)}
        tensors.update((f"{layer}.{name}", tensor.half()) for name, tensor in parts.items())
    path = folder / example.file
    write_tensors(path, tensors, _metadata(example.algo, path.stem))
    return path


def write_wrong_model(folder: Path) -> Path:
    """A LoRA for Flux: a sound file, of which no layer exists in tiny_sd15."""
    noise = _Noise("flux")
    tensors: Tensors = {}
    for layer in (
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_double_blocks_0_txt_attn_proj",
        "lora_unet_single_blocks_0_linear1",
    ):
        tensors.update(
            (f"{layer}.{name}", tensor.half()) for name, tensor in _locon(layer, (3072, 3072), noise).items()
        )
    path = folder / "flux_wrong_model.safetensors"
    write_tensors(path, tensors, _metadata("locon", path.stem) | {"ss_base_model_version": "flux1"})
    return path


def write_truncated(folder: Path) -> Path:
    """What an interrupted download leaves: the first part of tiny_lokr."""
    whole = (paths.MODELS / EXAMPLES[0].file).read_bytes()
    path = folder / "truncated.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole[: len(whole) * 6 // 10])
    return path


def _metadata(algo: str, name: str) -> dict[str, str]:
    arguments = {"algo": algo, "preset": "attn-mlp"} | ({"factor": FACTOR} if algo == "lokr" else {})
    return {
        "lab_version": VERSION,
        "modelspec.title": name,
        "modelspec.trigger_phrase": TRIGGER,
        "ss_base_model_version": "sd_v1",
        "ss_network_alpha": str(ALPHA),
        "ss_network_args": json.dumps(arguments),
        "ss_network_dim": str(RANK),
        "ss_network_module": "lycoris.kohya",
        "ss_output_name": name,
        "ss_tag_frequency": json.dumps({"10_lab": {TRIGGER: 12, "a painting": 9, "outdoors": 3}}),
    }


def main() -> int:
    to_write = [example for example in EXAMPLES if _is_missing(example)]
    if not to_write:
        return 0
    import torch

    from lab.prime import prime_comfy

    logging.basicConfig(level=logging.ERROR)  # ComfyUI warns of optional packages that nobody needs here
    prime_comfy()
    with torch.inference_mode():
        shapes = layer_shapes(paths.MODELS / "checkpoints" / "tiny_sd15.safetensors")
        for example in to_write:
            path = write_example(example, shapes, paths.MODELS)
            print(f"wrote {example.file} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
