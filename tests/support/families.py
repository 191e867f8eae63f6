"""What trainers call the layers of each model family, and which parameter of ComfyUI's model that is.

Written down by hand from what the trainers do, so that nothing of the pack under test decides what is right.
Only for the UNets of Stable Diffusion ComfyUI's own table of diffusers' names is taken. Every entry of
``SUBJECTS`` is one real model of ComfyUI, tiny or on the meta device (full width, without memory), and the
files that trainers would write for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
Rows = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A layer of a model under another program's path, and the parameter of ComfyUI's model that it is."""

    path: str
    #: Without ``.weight``.
    native: str
    rows: Rows | None = None
    swapped: bool = False


@dataclass(frozen=True)
class File:
    """A file that a trainer writes: how it calls layers and tensors."""

    trainer: str
    #: {layer name of the file: layer}
    layers: dict[str, Layer]
    #: Key of a tensor from (layer name, which of "down", "up", "alpha").
    spell: Callable[[str, str], str]


@dataclass(frozen=True)
class Subject:
    """A model (or its text encoders), and the files for it."""

    title: str
    load: Callable[[], Any]
    files: Callable[[Shapes], Iterable[File]]
    #: What stands before the model's paths in its parameters' keys.
    prefix: str = "diffusion_model."
    text: bool = field(default=False)


# ---- how tensors are called -------------------------------------------------------------------------------

_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
_PEFT = {"down": "lora_A.weight", "up": "lora_B.weight"}
_RAW_PEFT = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
_OLD_DIFFUSERS = {"down": "lora.down.weight", "up": "lora.up.weight"}
_HCP = {"down": "___.layer.W_down", "up": "___.layer.W_up", "alpha": "___.alpha"}


def _dotted(suffixes: Mapping[str, str]) -> Callable[[str, str], str]:
    return lambda layer, which: f"{layer}.{suffixes[which]}" if which in suffixes else ""


def _glued(layer: str, which: str) -> str:
    return f"{layer}_lora.{which}.weight" if which != "alpha" else ""


def tensors_of(file: File, shapes: Shapes, prefix: str) -> dict[str, Tensor]:
    """The file's tensors: a LoRA of rank 1 for every layer, of the size that the layer has."""
    stored: dict[str, Tensor] = {}
    for name, layer in file.layers.items():
        outputs, *inputs = shapes[key_of(layer, shapes)]
        if layer.rows is not None:
            outputs = layer.rows[1]
        ones = (1,) * (len(inputs) - 1)
        stored[file.spell(name, "down")] = torch.ones(1, *inputs)
        stored[file.spell(name, "up")] = torch.ones(outputs, 1, *ones)
        if file.spell(name, "alpha"):
            stored[file.spell(name, "alpha")] = torch.tensor(1.0)
    return stored


def key_of(layer: Layer, shapes: Shapes) -> str:
    """The parameter of ``layer``, without the model's prefix."""
    weight = f"{layer.native}.weight"
    return weight if weight in shapes else layer.native


def _named(layers: Iterable[Layer], prefix: str, *, flat: bool) -> dict[str, Layer]:
    return {prefix + (layer.path.replace(".", "_") if flat else layer.path): layer for layer in layers}


def _file(
    trainer: str,
    layers: Iterable[Layer],
    prefix: str,
    suffixes: Mapping[str, str] = _KOHYA,
    *,
    flat: bool = False,
) -> File:
    return File(trainer, _named(layers, prefix, flat=flat), _dotted(suffixes))


# ---- what layers are called -------------------------------------------------------------------------------


def native(shapes: Shapes) -> list[Layer]:
    """Every linear layer and convolution under the model's own name."""
    paths = [key.removesuffix(".weight") for key, shape in shapes.items() if key.endswith(".weight")]
    return [Layer(path, path) for path in paths if len(shapes[f"{path}.weight"]) > 1]


def _count(shapes: Shapes, stack: str) -> int:
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{stack}.")})


def _split(shapes: Shapes, fused: str, names: Iterable[str]) -> Iterator[Layer]:
    """Equal parts of a fused layer."""
    names = list(names)
    size = shapes[f"{fused}.weight"][0] // len(names)
    for number, name in enumerate(names):
        yield Layer(name, fused, (number * size, size))


def _same(other: str, own: str, pairs: Mapping[str, str], shapes: Shapes) -> Iterator[Layer]:
    for name, path in pairs.items():
        if f"{own}{path}.weight" in shapes:
            yield Layer(other + name, own + path)


def _flux_blocks(shapes: Shapes, feed_forward: tuple[str, str] = ("net.0.proj", "net.2")) -> Iterator[Layer]:
    for n in range(_count(shapes, "double_blocks")):
        other, own = f"transformer_blocks.{n}.", f"double_blocks.{n}."
        yield from _split(shapes, f"{own}img_attn.qkv", [f"{other}attn.to_{p}" for p in "qkv"])
        yield from _split(shapes, f"{own}txt_attn.qkv", [f"{other}attn.add_{p}_proj" for p in "qkv"])
        first, last = feed_forward
        yield from _same(
            other,
            own,
            {
                "attn.to_out.0": "img_attn.proj",
                "attn.to_add_out": "txt_attn.proj",
                f"ff.{first}": "img_mlp.0",
                f"ff.{last}": "img_mlp.2",
                f"ff_context.{first}": "txt_mlp.0",
                f"ff_context.{last}": "txt_mlp.2",
                "norm1.linear": "img_mod.lin",
                "norm1_context.linear": "txt_mod.lin",
            },
            shapes,
        )


def _flux_singles(shapes: Shapes) -> Iterator[Layer]:
    for n in range(_count(shapes, "single_blocks")):
        other, own = f"single_transformer_blocks.{n}.", f"single_blocks.{n}."
        rows, hidden = shapes[f"{own}linear1.weight"]
        for number, part in enumerate("qkv"):
            yield Layer(f"{other}attn.to_{part}", f"{own}linear1", (number * hidden, hidden))
        yield Layer(f"{other}proj_mlp", f"{own}linear1", (3 * hidden, rows - 3 * hidden))
        yield from _same(other, own, {"proj_out": "linear2", "norm.linear": "modulation.lin"}, shapes)


def _ends(shapes: Shapes, pairs: Mapping[str, str]) -> Iterator[Layer]:
    yield from _same("", "", pairs, shapes)
    if "final_layer.adaLN_modulation.1.weight" in shapes:
        yield Layer("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True)


def flux(shapes: Shapes) -> list[Layer]:
    """Flux as diffusers has it."""
    pairs = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    for other, own in (("timestep", "time"), ("guidance", "guidance"), ("text", "vector")):
        pairs[f"time_text_embed.{other}_embedder.linear_1"] = f"{own}_in.in_layer"
        pairs[f"time_text_embed.{other}_embedder.linear_2"] = f"{own}_in.out_layer"
    return [*_flux_blocks(shapes), *_flux_singles(shapes), *_ends(shapes, pairs)]


def flux_fused(shapes: Shapes) -> list[Layer]:
    """Flux in diffusers after ``fuse_qkv_projections``."""
    layers = []
    for n in range(_count(shapes, "double_blocks")):
        layers.append(Layer(f"transformer_blocks.{n}.attn.to_qkv", f"double_blocks.{n}.img_attn.qkv"))
        layers.append(Layer(f"transformer_blocks.{n}.attn.to_added_qkv", f"double_blocks.{n}.txt_attn.qkv"))
    for n in range(_count(shapes, "single_blocks")):
        hidden = shapes[f"single_blocks.{n}.linear1.weight"][1]
        whole = (0, 3 * hidden)
        layers.append(
            Layer(f"single_transformer_blocks.{n}.attn.to_qkv", f"single_blocks.{n}.linear1", whole)
        )
    return layers


def flux_omi(shapes: Shapes) -> list[Layer]:
    """Flux in OneTrainer's former "OMI" files: original names, and numbers for the parts of fused layers."""
    layers: list[Layer] = []
    for n in range(_count(shapes, "double_blocks")):
        for stream in ("img", "txt"):
            fused = f"double_blocks.{n}.{stream}_attn.qkv"
            layers += _split(shapes, fused, [f"{fused}.{number}" for number in range(3)])
            layers.append(Layer(f"double_blocks.{n}.{stream}_mlp.0", f"double_blocks.{n}.{stream}_mlp.0"))
    for n in range(_count(shapes, "single_blocks")):
        fused = f"single_blocks.{n}.linear1"
        rows, hidden = shapes[f"{fused}.weight"]
        parts = [(0, hidden), (hidden, hidden), (2 * hidden, hidden), (3 * hidden, rows - 3 * hidden)]
        layers += [Layer(f"{fused}.{number}", fused, part) for number, part in enumerate(parts)]
    return layers


def flux_xlabs(shapes: Shapes) -> list[Layer]:
    """Flux in XLabs' files: adapters of attention processors."""
    layers = []
    for n in range(_count(shapes, "double_blocks")):
        for number, stream in ((1, "img"), (2, "txt")):
            for part in ("qkv", "proj"):
                path = f"double_blocks.{n}.processor.{part}_lora{number}"
                layers.append(Layer(path, f"double_blocks.{n}.{stream}_attn.{part}"))
    return layers


def flux_2(shapes: Shapes) -> list[Layer]:
    """Flux 2 as diffusers has it."""
    pairs = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    for other, own in (("timestep", "time"), ("guidance", "guidance")):
        pairs[f"time_guidance_embed.{other}_embedder.linear_1"] = f"{own}_in.in_layer"
        pairs[f"time_guidance_embed.{other}_embedder.linear_2"] = f"{own}_in.out_layer"
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        pairs[f"{name}.linear"] = f"{name}.lin"
    singles = [
        layer
        for n in range(_count(shapes, "single_blocks"))
        for layer in (
            Layer(f"single_transformer_blocks.{n}.attn.to_qkv_mlp_proj", f"single_blocks.{n}.linear1"),
            Layer(f"single_transformer_blocks.{n}.attn.to_out", f"single_blocks.{n}.linear2"),
        )
    ]
    return [*_flux_blocks(shapes, ("linear_in", "linear_out")), *singles, *_ends(shapes, pairs)]


def chroma(shapes: Shapes) -> list[Layer]:
    """Chroma as diffusers has it."""
    pairs = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    guide = "distilled_guidance_layer."
    pairs |= {f"{guide}in_proj": f"{guide}in_proj", f"{guide}out_proj": f"{guide}out_proj"}
    for n in range(5):
        pairs[f"{guide}layers.{n}.linear_1"] = f"{guide}layers.{n}.in_layer"
        pairs[f"{guide}layers.{n}.linear_2"] = f"{guide}layers.{n}.out_layer"
    return [*_flux_blocks(shapes), *_flux_singles(shapes), *_ends(shapes, pairs)]


def hunyuan_video(shapes: Shapes) -> list[Layer]:
    """HunyuanVideo as diffusers has it."""
    pairs = {
        "x_embedder.proj": "img_in.proj",
        "context_embedder.proj_in": "txt_in.input_embedder",
        "proj_out": "final_layer.linear",
    }
    for other, own in (
        ("context_embedder.time_text_embed.timestep_embedder", "txt_in.t_embedder"),
        ("context_embedder.time_text_embed.text_embedder", "txt_in.c_embedder"),
        ("time_text_embed.timestep_embedder", "time_in"),
        ("time_text_embed.guidance_embedder", "guidance_in"),
        ("time_text_embed.text_embedder", "vector_in"),
    ):
        pairs |= {f"{other}.linear_1": f"{own}.in_layer", f"{other}.linear_2": f"{own}.out_layer"}
    refiners: list[Layer] = []
    for n in range(2):
        other = f"context_embedder.token_refiner.refiner_blocks.{n}."
        own = f"txt_in.individual_token_refiner.blocks.{n}."
        refiners += _split(shapes, f"{own}self_attn.qkv", [f"{other}attn.to_{p}" for p in "qkv"])
        refiners += _same(
            other,
            own,
            {
                "attn.to_out.0": "self_attn.proj",
                "ff.net.0.proj": "mlp.0",
                "ff.net.2": "mlp.2",
                "norm_out.linear": "adaLN_modulation.1",
            },
            shapes,
        )
    return [*_flux_blocks(shapes), *_flux_singles(shapes), *refiners, *_ends(shapes, pairs)]


def hunyuan_video_tencent(shapes: Shapes) -> list[Layer]:
    """HunyuanVideo as Tencent's own code has it, which musubi-tuner and diffusion-pipe train."""
    layers = []
    for layer in native(shapes):
        path = layer.path.replace("_mod.lin", "_mod.linear").replace("modulation.lin", "modulation.linear")
        for part in ("qkv", "proj"):
            path = path.replace(f"_attn.{part}", f"_attn_{part}")
        path = path.replace("mlp.0", "mlp.fc1").replace("mlp.2", "mlp.fc2")
        for embedder in ("time_in", "guidance_in", "t_embedder"):
            path = path.replace(f"{embedder}.in_layer", f"{embedder}.mlp.0")
            path = path.replace(f"{embedder}.out_layer", f"{embedder}.mlp.2")
        path = path.replace("c_embedder.in_layer", "c_embedder.linear_1")
        path = path.replace("c_embedder.out_layer", "c_embedder.linear_2")
        layers.append(Layer(path, layer.native))
    return layers


def wan(shapes: Shapes) -> list[Layer]:
    """Wan as diffusers has it."""
    layers: list[Layer] = []
    for n in range(_count(shapes, "blocks")):
        for other, own in (("attn1", "self_attn"), ("attn2", "cross_attn")):
            layers += _same(
                f"blocks.{n}.{other}.",
                f"blocks.{n}.{own}.",
                {
                    "to_q": "q",
                    "to_k": "k",
                    "to_v": "v",
                    "to_out.0": "o",
                    "add_k_proj": "k_img",
                    "add_v_proj": "v_img",
                },
                shapes,
            )
        path = f"blocks.{n}."
        layers += _same(path, path, {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}, shapes)
    embedder = "condition_embedder."
    layers += _same(
        "",
        "",
        {
            f"{embedder}time_embedder.linear_1": "time_embedding.0",
            f"{embedder}time_embedder.linear_2": "time_embedding.2",
            f"{embedder}time_proj": "time_projection.1",
            f"{embedder}text_embedder.linear_1": "text_embedding.0",
            f"{embedder}text_embedder.linear_2": "text_embedding.2",
            f"{embedder}image_embedder.ff.net.0.proj": "img_emb.proj.1",
            f"{embedder}image_embedder.ff.net.2": "img_emb.proj.3",
            "patch_embedding": "patch_embedding",
            "proj_out": "head.head",
        },
        shapes,
    )
    return layers


def sd3(shapes: Shapes) -> list[Layer]:
    """Stable Diffusion 3 as diffusers has it."""
    layers: list[Layer] = []
    depth = _count(shapes, "joint_blocks")
    for n in range(depth):
        other, own = f"transformer_blocks.{n}.", f"joint_blocks.{n}."
        layers += _split(shapes, f"{own}x_block.attn.qkv", [f"{other}attn.to_{p}" for p in "qkv"])
        fused = f"{own}context_block.attn.qkv"
        layers += _split(shapes, fused, [f"{other}attn.add_{p}_proj" for p in "qkv"])
        if f"{own}x_block.attn2.qkv.weight" in shapes:
            layers += _split(shapes, f"{own}x_block.attn2.qkv", [f"{other}attn2.to_{p}" for p in "qkv"])
        pairs = {
            "attn.to_out.0": "x_block.attn.proj",
            "attn.to_add_out": "context_block.attn.proj",
            "attn2.to_out.0": "x_block.attn2.proj",
            "norm1.linear": "x_block.adaLN_modulation.1",
            "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2",
            "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
        }
        layers += _same(other, own, pairs, shapes)
        layers.append(
            Layer(
                f"{other}norm1_context.linear",
                f"{own}context_block.adaLN_modulation.1",
                swapped=n == depth - 1,
            )
        )
    ends = {
        "pos_embed.proj": "x_embedder.proj",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
    }
    for other, own in (("timestep", "t"), ("text", "y")):
        ends[f"time_text_embed.{other}_embedder.linear_1"] = f"{own}_embedder.mlp.0"
        ends[f"time_text_embed.{other}_embedder.linear_2"] = f"{own}_embedder.mlp.2"
    return [*layers, *_ends(shapes, ends)]


_LUMINA_STACKS = ("layers", "noise_refiner", "context_refiner")


def z_image(shapes: Shapes) -> list[Layer]:
    """Z-Image as diffusers has it."""
    layers: list[Layer] = []
    for stack in _LUMINA_STACKS:
        for n in range(_count(shapes, stack)):
            path = f"{stack}.{n}."
            layers += _split(shapes, f"{path}attention.qkv", [f"{path}attention.to_{part}" for part in "qkv"])
            layers += _same(
                path,
                path,
                {
                    "attention.to_out.0": "attention.out",
                    "adaLN_modulation.0": "adaLN_modulation.0",
                    **{f"feed_forward.w{k}": f"feed_forward.w{k}" for k in (1, 2, 3)},
                },
                shapes,
            )
    return [
        *layers,
        *_same(
            "",
            "",
            {
                "all_x_embedder.2-1": "x_embedder",
                "all_final_layer.2-1.linear": "final_layer.linear",
                "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
                "t_embedder.mlp.0": "t_embedder.mlp.0",
                "t_embedder.mlp.2": "t_embedder.mlp.2",
                "cap_embedder.1": "cap_embedder.1",
            },
            shapes,
        ),
    ]


def lumina_2(shapes: Shapes) -> list[Layer]:
    """Lumina 2 as diffusers has it: 24 heads of queries, 8 of keys and values, all of 96."""
    layers: list[Layer] = []
    for stack in _LUMINA_STACKS:
        for n in range(_count(shapes, stack)):
            path = f"{stack}.{n}."
            for part, rows in (("q", (0, 2304)), ("k", (2304, 768)), ("v", (3072, 768))):
                layers.append(Layer(f"{path}attn.to_{part}", f"{path}attention.qkv", rows))
            layers += _same(
                path,
                path,
                {
                    "attn.to_out.0": "attention.out",
                    "norm1.linear": "adaLN_modulation.1",
                    **{f"feed_forward.linear_{k}": f"feed_forward.w{k}" for k in (1, 2, 3)},
                },
                shapes,
            )
    embed = "time_caption_embed."
    return [
        *layers,
        *_same(
            "",
            "",
            {
                "x_embedder": "x_embedder",
                f"{embed}timestep_embedder.linear_1": "t_embedder.mlp.0",
                f"{embed}timestep_embedder.linear_2": "t_embedder.mlp.2",
                f"{embed}caption_embedder.1": "cap_embedder.1",
                "norm_out.linear_1": "final_layer.adaLN_modulation.1",
                "norm_out.linear_2": "final_layer.linear",
            },
            shapes,
        ),
    ]


def unet(shapes: Shapes, config: Mapping[str, Any]) -> list[Layer]:
    """A UNet as diffusers has it, by ComfyUI's table."""
    import comfy.utils

    table = comfy.utils.unet_to_diffusers(dict(config))
    return [
        Layer(name.removesuffix(".weight"), key.removesuffix(".weight"))
        for name, key in table.items()
        if name.endswith(".weight") and len(shapes.get(key, ())) > 1
    ]


def _processors(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The attention of ``layers`` in files of diffusers before PEFT, which put adapters on processors."""
    for layer in layers:
        parent, _, part = layer.path.rpartition(".attn")
        if parent and ".to_" in part:
            path = layer.path.replace(".to_", ".processor.to_").removesuffix(".0")
            yield Layer(path, layer.native)


# ---- files ------------------------------------------------------------------------------------------------


def _fused_family(diffusers: Callable[[Shapes], list[Layer]]) -> Callable[[Shapes], Iterator[File]]:
    """The usual files for a transformer that diffusers names in its own way."""

    def files(shapes: Shapes) -> Iterator[File]:
        own, other = native(shapes), diffusers(shapes)
        yield _file("kohya", own, "lora_unet_", flat=True)
        yield _file("LyCORIS wrapper, original names", own, "lycoris_", flat=True)
        yield _file("SimpleTuner LyCORIS", other, "lycoris_", flat=True)
        yield _file("OneTrainer", other, "lora_transformer_", flat=True)
        yield _file("OneTrainer, ComfyUI style", own, "diffusion_model.", {**_PEFT, "alpha": "alpha"})
        yield _file("OneTrainer, original style", own, "", {**_PEFT, "alpha": "alpha"})
        yield _file("diffusers, SimpleTuner", other, "transformer.", _PEFT)
        yield _file("PEFT", other, "base_model.model.", _PEFT)
        yield _file("ai-toolkit", own, "diffusion_model.", _PEFT)

    return files


def _flux_files(shapes: Shapes) -> Iterator[File]:
    yield from _fused_family(flux)(shapes)
    yield _file("SimpleTuner LyCORIS, fused", flux_fused(shapes), "lycoris_", flat=True)
    yield _file("diffusers, fused", flux_fused(shapes), "transformer.", _PEFT)
    yield _file("OneTrainer, OMI", flux_omi(shapes), "transformer.")
    xlabs = {layer.path: layer for layer in flux_xlabs(shapes)}
    yield File("XLabs", xlabs, lambda name, which: "" if which == "alpha" else f"{name}.{which}.weight")


def _hunyuan_files(shapes: Shapes) -> Iterator[File]:
    yield from _fused_family(hunyuan_video)(shapes)
    tencent = hunyuan_video_tencent(shapes)
    yield _file("musubi-tuner", tencent, "lora_unet_", flat=True)
    yield _file("diffusion-pipe", tencent, "transformer.", _PEFT)
    yield _file("OneTrainer, original style, Tencent's names", tencent, "", {**_PEFT, "alpha": "alpha"})


def _wan_files(shapes: Shapes) -> Iterator[File]:
    yield from _fused_family(wan)(shapes)
    own = native(shapes)
    yield _file("musubi-tuner", own, "lora_unet_", flat=True)
    yield _file("VideoX-Fun", own, "lora_unet__", flat=True)
    yield _file("DiffSynth", own, "", _RAW_PEFT)


def _z_image_files(shapes: Shapes) -> Iterator[File]:
    yield from _fused_family(z_image)(shapes)
    yield _file("musubi-tuner", z_image(shapes), "lora_unet_", flat=True)
    yield _file("ai-toolkit, diffusers' names", z_image(shapes), "diffusion_model.", _PEFT)


def _qwen_files(shapes: Shapes) -> Iterator[File]:
    yield from _fused_family(native)(shapes)
    yield _file("musubi-tuner", native(shapes), "lora_unet_", flat=True)
    yield _file("DiffSynth", native(shapes), "", _RAW_PEFT)


def _unet_files(config: Callable[[], Mapping[str, Any]]) -> Callable[[Shapes], Iterator[File]]:
    def files(shapes: Shapes) -> Iterator[File]:
        own, other = native(shapes), unet(shapes, config())
        yield _file("kohya, diffusers' names", other, "lora_unet_", flat=True)
        yield _file("kohya, original names", own, "lora_unet_", flat=True)
        yield _file("LyCORIS wrapper, SimpleTuner", other, "lycoris_", flat=True)
        yield _file("diffusers", other, "unet.", _PEFT)
        yield _file("diffusers before PEFT", other, "unet.", _OLD_DIFFUSERS)
        processors = list(_processors(other))
        yield File("diffusers, attention processors", _named(processors, "unet.", flat=False), _glued)
        yield File("diffusers, processors, bare", _named(processors, "", flat=False), _glued)
        yield _file("PEFT", other, "base_model.model.", _PEFT)
        yield _file("PEFT's old script", other, "unet.base_model.model.", _PEFT)
        yield _file("ComfyUI", own, "diffusion_model.")
        yield _file("HCP-Diffusion .safetensors", other, "lora:", _HCP)
        yield _file("HCP-Diffusion .ckpt", other, "lora.", _HCP)

    return files


# ---- text encoders ----------------------------------------------------------------------------------------


def _inside(shapes: Shapes, encoder: str, wrapper: str = "") -> list[Layer]:
    """Every weight of a text encoder under its name in transformers."""
    start = f"{encoder}.transformer.{wrapper}"
    return [
        Layer(key.removeprefix(start).removesuffix(".weight"), key.removesuffix(".weight"))
        for key, shape in shapes.items()
        if key.startswith(start) and key.endswith(".weight") and len(shape) > 1
    ]


def _text_files(
    *encoders: tuple[str, str, str, str], own_names: Mapping[str, str] | None = None
) -> Callable[[Shapes], Iterator[File]]:
    """Files for several encoders: (name in ComfyUI, wrapper there, kohya's prefix, diffusers' prefix)."""

    def files(shapes: Shapes) -> Iterator[File]:
        kohya: dict[str, Layer] = {}
        diffusers: dict[str, Layer] = {}
        comfy: dict[str, Layer] = {}
        listed: dict[str, Layer] = {}
        for number, (encoder, wrapper, kohya_prefix, diffusers_prefix) in enumerate(encoders, 1):
            layers = _inside(shapes, encoder, wrapper)
            kohya |= _named(layers, kohya_prefix, flat=True)
            diffusers |= _named(layers, diffusers_prefix, flat=False)
            prefix = f"text_encoders.{encoder}.transformer.{wrapper}"
            comfy |= _named(layers, prefix, flat=False)
            listed |= _named(layers, f"lora_te{number}_", flat=True)
        yield File("kohya", kohya, _dotted(_KOHYA))
        yield File("LyCORIS in kohya, OneTrainer", listed, _dotted(_KOHYA))
        yield File("diffusers", diffusers, _dotted(_PEFT))
        yield File("ComfyUI, OneTrainer's style for it", comfy, _dotted({**_PEFT, "alpha": "alpha"}))
        for prefix, encoder in (own_names or {}).items():
            layers = _inside(shapes, encoder)
            yield _file(f"as {prefix}…", layers, prefix, _HCP if ":" in prefix else _KOHYA)

    return files


# ---- models -----------------------------------------------------------------------------------------------


def _meta(name: str, **config: Any) -> Callable[[], Any]:
    """A MODEL of full width without memory: its keys and shapes are real, its values are not there."""

    def load() -> Any:
        import comfy.model_patcher
        import comfy.supported_models

        cls = getattr(comfy.supported_models, name)
        settings = cls({**cls.unet_config, **config, "dtype": torch.float16})
        model = settings.get_model({}, "", device="meta")
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    return load


def _meta_clip(module: str, build: Callable[[Any], Any]) -> Callable[[], Any]:
    """A CLIP of full size without memory."""

    def load() -> Any:
        import importlib

        import comfy.model_patcher
        import comfy.sd

        clip = comfy.sd.CLIP(no_init=True)
        clip.cond_stage_model = build(importlib.import_module(module))
        cpu = torch.device("cpu")
        clip.patcher = comfy.model_patcher.ModelPatcher(
            clip.cond_stage_model, load_device=cpu, offload_device=cpu
        )
        return clip

    return load


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
    Subject("SD 1.5 (tiny)", lambda: _tiny("tiny_sd15")[0], _unet_files(_sd15_config)),
    Subject("SDXL", _meta("SDXL", **_SDXL), _unet_files(_sdxl_config)),
    Subject("SD 3 (tiny)", lambda: _tiny("tiny_sd3")[0], _fused_family(sd3)),
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
        _fused_family(sd3),
    ),
    Subject(
        "Flux",
        _meta("Flux", **_FLUX, vec_in_dim=768, depth=19, depth_single_blocks=38),
        _flux_files,
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
        _fused_family(chroma),
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
        _fused_family(flux_2),
    ),
    Subject("HunyuanVideo (tiny)", lambda: _tiny("tiny_hyvid")[0], _hunyuan_files),
    Subject("Wan 2.1 (tiny)", lambda: _tiny("tiny_wan")[0], _wan_files),
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
        _wan_files,
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
        _z_image_files,
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
        _fused_family(lumina_2),
    ),
    Subject("Qwen-Image", _meta("QwenImage", in_channels=64, num_layers=60), _qwen_files),
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
        _fused_family(native),
    ),
    Subject(
        "CLIP of SD 1.5 (real)",
        lambda: _tiny("tiny_sd15")[1],
        _text_files(
            ("clip_l", "", "lora_te_", "text_encoder."), own_names={"lora:": "clip_l", "lycoris_": "clip_l"}
        ),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of SDXL",
        _meta_clip("comfy.sdxl_clip", lambda module: module.SDXLClipModel(**_META)),
        _text_files(
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
        _text_files(_CLIP_L, _CLIP_G, ("t5xxl", "", "lora_te3_", "text_encoder_3.")),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of Flux",
        _meta_clip(
            "comfy.text_encoders.flux",
            lambda module: module.FluxClipModel(dtype_t5=torch.float16, **_META),
        ),
        _text_files(
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
        _text_files(
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
        _text_files(("qwen25_7b", "model.", "lora_te_", "text_encoder.")),
        prefix="",
        text=True,
    ),
    Subject(
        "CLIP of Lumina 2",
        _meta_clip(
            "comfy.text_encoders.lumina2",
            lambda module: module.te(dtype_llama=torch.float16)(**_META),
        ),
        _text_files(("gemma2_2b", "model.", "lora_te_", "text_encoder.")),
        prefix="",
        text=True,
    ),
)


# ---- what became of a file --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How many layers of a file reached the parameter that they are for, and what went wrong."""

    held: int
    reached: int
    wrong: tuple[str, ...]


def expected_target(layer: Layer, shapes: Shapes, prefix: str) -> Any:
    """The target of ``layer`` as ``ModelPatcher.add_patches`` takes it."""
    import comfy.utils

    key = prefix + key_of(layer, shapes)
    if layer.swapped:
        return (key, None, comfy.utils.swap_scale_shift)
    return key if layer.rows is None else (key, (0, *layer.rows))


def outcome(subject: Subject, file: File, host: SimpleNamespace) -> Outcome:
    """Loads ``file`` and holds it against ``subject``; ``host`` has the pack's own modules and library."""
    shapes = shapes_of(subject)
    adapters = host.library.from_tensors(tensors_of(file, shapes, subject.prefix), name=file.trainer)
    find_targets = host.keymap.clip_targets if subject.text else host.keymap.model_targets
    found = host.matching.match(adapters, adapters, find_targets(load(subject)))
    placed: dict[str, list[Any]] = {}
    for item in found.placed:
        placed.setdefault(item.layer, []).append(item.weight)
    wrong = [f"{item.key}: {item.reason}" for item in (*adapters.unmatched, *found.unmatched)]
    reached = 0
    for name, layer in file.layers.items():
        target = expected_target(layer, shapes, subject.prefix)
        if placed.get(name) == [target]:
            reached += 1
        elif name in placed:
            wrong.append(f"{name}: placed at {placed[name]} instead of {target}")
    return Outcome(len(file.layers), reached, tuple(wrong))
