"""The tiny models in this process, and adapter files for them, written on the fly.

ComfyUI must have been made importable (the ``pack`` fixture does). The models come from the stock loaders;
the files are plain safetensors with random tensors. What a file should do is computed by the library in
float64, which tests/parity and tests/unit hold to its references; here the question is what ComfyUI makes
of it.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lab import models, paths
from safetensors.torch import save_file
from torch import Tensor

import lycoris_algos

Tensors = dict[str, Tensor]

RANK, ALPHA = 4, 2.0
#: Root mean square of a change, roughly, as a share of the weight's.
SHARE = 0.3

NAMES = ("tiny_sd15", "tiny_sd3", "tiny_wan", "tiny_hyvid")


def load_model(name: str) -> tuple[Any, Any]:
    """(MODEL, CLIP or None) of one of ``NAMES``, as the stock loader nodes give them."""
    import comfy.sd

    models.ensure([name])
    path = str(paths.MODELS / models.FILES[name][0])
    if name.endswith("sd15"):
        model, clip, *_ = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=True)
        return model, clip
    return comfy.sd.load_diffusion_model(path), None


# ---- the weights of a patcher -----------------------------------------------------------------------------


def parameter(patcher: Any, key: str) -> Tensor:
    """The parameter ``key`` as it stands in the model."""
    import comfy.utils

    return comfy.utils.get_attr(patcher.model, own_key(patcher, key))


def own_key(patcher: Any, key: str) -> str:
    """``key`` as this host has it, which calls the weights of Flux' norms ``scale`` or ``weight``."""
    if key.endswith("_norm.scale") and key not in patcher.model.state_dict():
        return f"{key.removesuffix('.scale')}.weight"
    return key


@contextlib.contextmanager
def loaded(patcher: Any) -> Iterator[Callable[[str], Tensor]]:
    """The patcher loaded whole, as ComfyUI does before it samples; a function from keys to weights."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    try:
        yield lambda key: parameter(patcher, key).detach().clone()
    finally:
        comfy.model_management.unload_all_models()


def checksum(patcher: Any) -> dict[str, int]:
    """Every tensor of the model, so that one changed bit is noticed."""
    return {
        key: zlib.crc32(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        for key, value in patcher.model.state_dict().items()
    }


def patches_of(patcher: Any) -> dict[Any, Any]:
    """{target: the last patch on it} of a patched clone, with targets as ``add_patches`` takes them."""
    found = {}
    for key, entries in patcher.patches.items():
        for _, patch, _, offset, function in entries:
            if function is not None:
                found[(key, offset, function)] = patch
            else:
                found[key if offset is None else (key, offset)] = patch
    return found


def state_of(patcher: Any) -> tuple[Any, ...]:
    """What must not change about a MODEL that a node was given."""
    return patcher.patches_uuid, {key: list(value) for key, value in patcher.patches.items()}


# ---- files ------------------------------------------------------------------------------------------------


def save(path: Path, layers: Mapping[str, Mapping[str, Tensor]], **metadata: str) -> Path:
    """A safetensors file of {layer: {suffix: tensor}}; keys with dots in ``metadata`` are written with __."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}.{suffix}": value.clone().contiguous()
        for layer, own in layers.items()
        for suffix, value in own.items()
    }
    save_file(tensors, path, {key.replace("__", "."): value for key, value in metadata.items()} or None)
    return path


CONV_IN, CONV_IN_KEY = "lora_unet_conv_in", "diffusion_model.input_blocks.0.0.weight"


def conv_in_lora(seed: str = "") -> Tensors:
    """A LoRA for the first convolution of tiny_sd15."""
    return make("lora", torch.randn(320, 4, 3, 3, generator=torch.Generator().manual_seed(1)), seed)


def put(
    folders: Path, name: str, tensors: Tensors | None = None, folder: str = "loras", **metadata: str
) -> Path:
    """A file with one layer, a LoRA of ``CONV_IN`` by default, in one of the folders of adapter files."""
    layers = {CONV_IN: conv_in_lora() if tensors is None else tensors}
    return save(folders / folder / name, layers, **metadata)


def make(algo: str, weight: Tensor, seed: str = "") -> Tensors:
    """Random tensors of ``algo`` for ``weight``, with a change of about ``SHARE`` of it."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{algo}/{tuple(weight.shape)}/{seed}".encode()))

    def draw(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    return _MAKERS[algo](draw, weight.detach().float(), SHARE * float(weight.float().std().clamp(min=0.05)))


Draw = Callable[..., Tensor]


def _lora(draw: Draw, weight: Tensor, size: float) -> Tensors:
    ones = (1,) * (weight.dim() - 2)
    up = draw(weight.shape[0], RANK, *ones, std=size / (ALPHA / RANK * RANK**0.5))
    return {
        "lora_up.weight": up,
        "lora_down.weight": draw(RANK, *weight.shape[1:]),
        "alpha": torch.tensor(ALPHA),
    }


def _loha(draw: Draw, weight: Tensor, size: float) -> Tensors:
    o, columns = weight.shape[0], weight[0].numel()
    half = (size / (ALPHA / RANK)) ** 0.5 / RANK**0.5
    return {
        "hada_w1_a": draw(o, RANK, std=half),
        "hada_w1_b": draw(RANK, columns),
        "hada_w2_a": draw(o, RANK, std=half),
        "hada_w2_b": draw(RANK, columns),
        "alpha": torch.tensor(ALPHA),
    }


def _lokr(draw: Draw, weight: Tensor, size: float) -> Tensors:
    o, i, *kernel = weight.shape
    rows = 4 if o % 4 == 0 else 1
    columns = 4 if i % 4 == 0 else 1
    inner = i // columns * int(torch.Size(kernel).numel())
    return {
        "lokr_w1": draw(rows, columns),
        "lokr_w2_a": draw(o // rows, 2, std=size),
        "lokr_w2_b": draw(2, inner),
        "alpha": torch.tensor(1.0),
    }


def _full(draw: Draw, weight: Tensor, size: float) -> Tensors:
    return {"diff": draw(*weight.shape, std=size)}


def _norm(draw: Draw, weight: Tensor, size: float) -> Tensors:
    return {"w_norm": draw(*weight.shape, std=0.3), "b_norm": draw(*weight.shape, std=0.3)}


def _dora(draw: Draw, weight: Tensor, size: float) -> Tensors:
    norms = weight.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.dim() - 1))
    return {**_lora(draw, weight, size), "dora_scale": norms * (1 + 0.2 * draw(*norms.shape))}


def _glora(draw: Draw, weight: Tensor, size: float) -> Tensors:
    o, i, *kernel = weight.shape
    ones = (1,) * len(kernel)
    return {
        "a1.weight": draw(i, RANK, *ones, std=0.3 * i**-0.5),
        "a2.weight": draw(RANK, i, *ones),
        "b1.weight": draw(o, RANK, *ones, std=size),
        "b2.weight": draw(RANK, i, *kernel),
        "alpha": torch.tensor(ALPHA),
    }


def _ia3(draw: Draw, weight: Tensor, size: float) -> Tensors:
    ones = (1,) * (weight.dim() - 2)
    vector = draw(weight.shape[0], std=SHARE)
    return {
        "weight": vector.reshape(1, -1, *ones) if ones else vector,
        "on_input": torch.tensor(0),
    }


def _oft(draw: Draw, weight: Tensor, size: float) -> Tensors:
    return {"oft_blocks": draw(weight.shape[0] // 4, 4, 4, std=0.1), "alpha": torch.tensor(0.0)}


def _boft(draw: Draw, weight: Tensor, size: float) -> Tensors:
    o = weight.shape[0]
    blocks = o & -o  # the largest power of two in it
    while o // blocks < 4 or (o // blocks) % 2:
        blocks //= 2
    stages = blocks.bit_length()
    side = o // blocks
    return {"oft_blocks": draw(stages, blocks, side, side, std=0.05), "alpha": torch.tensor(0.0)}


def _tlora(draw: Draw, weight: Tensor, size: float) -> Tensors:
    """As trained from ``weight`` with the default start."""
    u, s, vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    u, s, vh = u[:, :RANK].float(), s[:RANK].float(), vh[:RANK].float()
    ones = (1,) * (weight.dim() - 2)
    return {
        "q_layer.weight": (vh + draw(*vh.shape, std=0.3 * vh.shape[1] ** -0.5)).reshape(RANK, -1, *ones),
        "p_layer.weight": (u + draw(*u.shape, std=0.3 * u.shape[0] ** -0.5)).reshape(-1, RANK, *ones),
        "lambda_layer": (s * (1 + 0.2 * draw(RANK))).reshape(1, RANK),
        "alpha": torch.tensor(ALPHA),
    }


_MAKERS: dict[str, Callable[[Draw, Tensor, float], Tensors]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "norm": _norm,
    "dora": _dora,
    "glora": _glora,
    "ia3": _ia3,
    "oft": _oft,
    "boft": _boft,
    "tlora": _tlora,
}


# ---- what they should do ----------------------------------------------------------------------------------


def adapter(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Any:
    """The layer's adapter in the tests' own copy of the library."""
    loaded = lycoris_algos.from_tensors({f"x.{suffix}": value for suffix, value in tensors.items()}, metadata)
    return loaded["x"]


def changed(weight: Tensor, *steps: tuple[Mapping[str, Tensor], float], base: Tensor | None = None) -> Tensor:
    """``weight`` after (tensors, multiplier) one after the other, in float64.

    ``base`` is the weight that the files were trained on, where an algorithm wants to know; the weight itself
    by default.
    """
    result = weight.detach().double()
    trained_on = result.clone() if base is None else base.detach().double()
    for tensors, multiplier in steps:
        change = adapter(tensors).structure(result.shape, torch.float64, lambda: trained_on)
        change = change.cast(result.device, torch.float64)
        result = result + multiplier * change.delta(result.reshape(len(result), -1)).reshape(result.shape)
    return result


def changed_bias(bias: Tensor, *steps: tuple[Mapping[str, Tensor], float]) -> Tensor:
    """The same for a bias."""
    result = bias.detach().double()
    for tensors, multiplier in steps:
        result = result + multiplier * adapter(tensors).bias.delta(result)
    return result


def assert_weight(found: Tensor, expected: Tensor, what: str = "weight", steps: float = 2.0) -> None:
    """``found`` is ``expected`` (float64), but for ``steps`` roundings to its dtype at the largest value."""
    limit = steps * torch.finfo(found.dtype).eps * float(expected.abs().max())
    error = float((found.double() - expected).abs().max())
    assert error <= limit, f"{what} is off by {error:.2e}, more than {limit:.2e}"
