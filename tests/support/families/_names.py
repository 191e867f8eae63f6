"""What the layers of each model family are called by others, and which of ComfyUI's parameters they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ._layers import Layer, Shapes, count, native, same, split


def _flux_blocks(shapes: Shapes, feed_forward: tuple[str, str] = ("net.0.proj", "net.2")) -> Iterator[Layer]:
    for n in range(count(shapes, "double_blocks")):
        other, own = f"transformer_blocks.{n}.", f"double_blocks.{n}."
        yield from split(shapes, f"{own}img_attn.qkv", [f"{other}attn.to_{p}" for p in "qkv"])
        yield from split(shapes, f"{own}txt_attn.qkv", [f"{other}attn.add_{p}_proj" for p in "qkv"])
        first, last = feed_forward
        yield from same(
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
    for n in range(count(shapes, "single_blocks")):
        other, own = f"single_transformer_blocks.{n}.", f"single_blocks.{n}."
        rows, hidden = shapes[f"{own}linear1.weight"]
        for number, part in enumerate("qkv"):
            yield Layer(f"{other}attn.to_{part}", f"{own}linear1", (number * hidden, hidden))
        yield Layer(f"{other}proj_mlp", f"{own}linear1", (3 * hidden, rows - 3 * hidden))
        yield from same(other, own, {"proj_out": "linear2", "norm.linear": "modulation.lin"}, shapes)


def _ends(shapes: Shapes, pairs: Mapping[str, str]) -> Iterator[Layer]:
    yield from same("", "", pairs, shapes)
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
    for n in range(count(shapes, "double_blocks")):
        layers.append(Layer(f"transformer_blocks.{n}.attn.to_qkv", f"double_blocks.{n}.img_attn.qkv"))
        layers.append(Layer(f"transformer_blocks.{n}.attn.to_added_qkv", f"double_blocks.{n}.txt_attn.qkv"))
    for n in range(count(shapes, "single_blocks")):
        hidden = shapes[f"single_blocks.{n}.linear1.weight"][1]
        whole = (0, 3 * hidden)
        layers.append(
            Layer(f"single_transformer_blocks.{n}.attn.to_qkv", f"single_blocks.{n}.linear1", whole)
        )
    return layers


def flux_omi(shapes: Shapes) -> list[Layer]:
    """Flux in OneTrainer's former "OMI" files: original names, and numbers for the parts of fused layers."""
    layers: list[Layer] = []
    for n in range(count(shapes, "double_blocks")):
        for stream in ("img", "txt"):
            fused = f"double_blocks.{n}.{stream}_attn.qkv"
            layers += split(shapes, fused, [f"{fused}.{number}" for number in range(3)])
            layers.append(Layer(f"double_blocks.{n}.{stream}_mlp.0", f"double_blocks.{n}.{stream}_mlp.0"))
    for n in range(count(shapes, "single_blocks")):
        fused = f"single_blocks.{n}.linear1"
        rows, hidden = shapes[f"{fused}.weight"]
        parts = [(0, hidden), (hidden, hidden), (2 * hidden, hidden), (3 * hidden, rows - 3 * hidden)]
        layers += [Layer(f"{fused}.{number}", fused, part) for number, part in enumerate(parts)]
    return layers


def flux_xlabs(shapes: Shapes) -> list[Layer]:
    """Flux in XLabs' files: adapters of attention processors."""
    layers = []
    for n in range(count(shapes, "double_blocks")):
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
        for n in range(count(shapes, "single_blocks"))
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
        refiners += split(shapes, f"{own}self_attn.qkv", [f"{other}attn.to_{p}" for p in "qkv"])
        refiners += same(
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
    for n in range(count(shapes, "blocks")):
        for other, own in (("attn1", "self_attn"), ("attn2", "cross_attn")):
            layers += same(
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
        layers += same(path, path, {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}, shapes)
    embedder = "condition_embedder."
    layers += same(
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
    depth = count(shapes, "joint_blocks")
    for n in range(depth):
        other, own = f"transformer_blocks.{n}.", f"joint_blocks.{n}."
        layers += split(shapes, f"{own}x_block.attn.qkv", [f"{other}attn.to_{p}" for p in "qkv"])
        fused = f"{own}context_block.attn.qkv"
        layers += split(shapes, fused, [f"{other}attn.add_{p}_proj" for p in "qkv"])
        if f"{own}x_block.attn2.qkv.weight" in shapes:
            layers += split(shapes, f"{own}x_block.attn2.qkv", [f"{other}attn2.to_{p}" for p in "qkv"])
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
        layers += same(other, own, pairs, shapes)
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


def hunyuan_dit(shapes: Shapes) -> list[Layer]:
    """HunyuanDiT as diffusers has it."""
    layers: list[Layer] = []
    for n in range(count(shapes, "blocks")):
        block = f"blocks.{n}."
        layers += split(shapes, f"{block}attn1.Wqkv", [f"{block}attn1.to_{p}" for p in "qkv"])
        layers += split(shapes, f"{block}attn2.kv_proj", [f"{block}attn2.to_{p}" for p in "kv"])
        pairs = {
            "attn1.to_out.0": "attn1.out_proj",
            "attn2.to_q": "attn2.q_proj",
            "attn2.to_out.0": "attn2.out_proj",
            "norm1.linear": "default_modulation.1",
            "ff.net.0.proj": "mlp.fc1",
            "ff.net.2": "mlp.fc2",
            "skip_linear": "skip_linear",
        }
        layers += same(block, block, pairs, shapes)
    ends = {"pos_embed.proj": "x_embedder.proj", "proj_out": "final_layer.linear"}
    for number, position in ((1, 0), (2, 2)):
        ends[f"text_embedder.linear_{number}"] = f"mlp_t5.{position}"
        ends[f"time_extra_emb.timestep_embedder.linear_{number}"] = f"t_embedder.mlp.{position}"
        ends[f"time_extra_emb.extra_embedder.linear_{number}"] = f"extra_embedder.{position}"
    for part in "kqvc":
        ends[f"time_extra_emb.pooler.{part}_proj"] = f"pooler.{part}_proj"
    return [*layers, *_ends(shapes, ends)]


_LUMINA_STACKS = ("layers", "noise_refiner", "context_refiner")


def z_image(shapes: Shapes) -> list[Layer]:
    """Z-Image as diffusers has it."""
    layers: list[Layer] = []
    for stack in _LUMINA_STACKS:
        for n in range(count(shapes, stack)):
            path = f"{stack}.{n}."
            layers += split(shapes, f"{path}attention.qkv", [f"{path}attention.to_{part}" for part in "qkv"])
            layers += same(
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
        *same(
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
        for n in range(count(shapes, stack)):
            path = f"{stack}.{n}."
            for part, rows in (("q", (0, 2304)), ("k", (2304, 768)), ("v", (3072, 768))):
                layers.append(Layer(f"{path}attn.to_{part}", f"{path}attention.qkv", rows))
            layers += same(
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
        *same(
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

    table = comfy.utils.unet_to_diffusers(dict(config))  # made from sets, so in any order
    # A model calls its label embedding by one of two names (``add_embedding``, ``class_embedding``).
    one_name = {key: name for name, key in sorted(table.items(), reverse=True)}
    return [
        Layer(name.removesuffix(".weight"), key.removesuffix(".weight"))
        for key, name in sorted(one_name.items(), key=lambda item: item[1])
        if name.endswith(".weight") and len(shapes.get(key, ())) > 1
    ]


def processors(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The attention of ``layers`` in files of diffusers before PEFT, which put adapters on processors."""
    for layer in layers:
        parent, _, part = layer.path.rpartition(".attn")
        if parent and ".to_" in part:
            path = layer.path.replace(".to_", ".processor.to_").removesuffix(".0")
            yield Layer(path, layer.native)
