"""A UNet of Stable Diffusion 1, 2 or XL under the names that diffusers gives its layers, and back.

The original code numbers blocks through (``input_blocks.7.1``), diffusers counts residual blocks and
attentions within each level (``down_blocks.2.attentions.0``). How many there are in a level is read off the
keys: a level ends with its downsampler, or on the way up with its upsampler. Both have few words, so that a
flattened path can be told apart again, and SDXL has one layout.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_REST = {
    "time_embed.0": ("time_embedding.linear_1",),
    "time_embed.2": ("time_embedding.linear_2",),
    "label_emb.0.0": ("add_embedding.linear_1", "class_embedding.linear_1"),
    "label_emb.0.2": ("add_embedding.linear_2", "class_embedding.linear_2"),
    "input_blocks.0.0": ("conv_in",),
    "out.0": ("conv_norm_out",),
    "out.2": ("conv_out",),
}
_RESNET_INNER = {diffusers: own for own, diffusers in _RESNET.items()}
_DIFFUSERS_BLOCK = re.compile(
    r"((?:down_blocks\.\d+|up_blocks\.\d+|mid_block)"
    r"\.(?:resnets\.\d+|attentions\.\d+|(?:down|up)samplers\.0\.conv))\.?(.*)"
)
_REST_OF_DIFFUSERS = {path: own for own, paths in _REST.items() for path in paths}
# Names of modules that have underscores of their own, and others.
_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out
        time_emb_proj conv_shortcut conv_in conv_out conv_norm_out time_embedding add_embedding
        class_embedding linear_1 linear_2 input_blocks middle_block output_blocks time_embed label_emb
        in_layers out_layers emb_layers skip_connection text_model self_attn q_proj k_proj v_proj out_proj
        layer_norm1 layer_norm2 final_layer_norm token_embedding position_embedding text_projection
        """,
    )
)
_SINGLE_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        attentions resnets downsamplers upsamplers conv conv1 conv2 norm norm1 norm2 norm3 attn1 attn2 ff
        net proj op out encoder layers mlp fc1 fc2 embeddings
        """,
    )
)
_WORD = re.compile(rf"(?<![^_])(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![^_])")
_BLOCK = re.compile(r"((?:input|output)_blocks\.\d+|middle_block)\.(\d+)\.(.+)")


def unet_names(inside: Collection[str]) -> Iterator[tuple[str, str]]:
    """(path in diffusers' UNet, key) of every layer of the UNet with these keys; nothing if it is none.

    ``inside`` are the keys of the diffusion model without its prefix.
    """
    if "input_blocks.0.0.weight" not in inside:
        return
    roots = _roots(_modules(inside))
    for key in inside:
        if key.endswith(".weight"):
            for path in _paths(key.removesuffix(".weight"), roots):
                yield path, key


def original_names(inside: Collection[str]) -> Iterator[tuple[str, str]]:
    """(path in the original code, key) of every layer of diffusers' UNet with these keys; nothing if none."""
    if "conv_in.weight" not in inside or not any(key.startswith("down_blocks.") for key in inside):
        return
    roots = _original_roots(inside)
    for key in inside:
        path = _original(key.removesuffix(".weight"), roots) if key.endswith(".weight") else None
        if path is not None:
            yield path, key


def sdxl_original(path: str) -> str | None:
    """What the original code calls the layer ``path`` of diffusers' UNet of SDXL; None if it has none."""
    return _original(path, _SDXL_ROOTS)


def sdxl_diffusers(path: str) -> str | None:
    """What diffusers calls the layer ``path`` of SDXL's UNet in the original code; None if it has none."""
    roots = {original: diffusers for diffusers, original in _SDXL_ROOTS.items()}
    return next(_paths(path, roots), None)


def dotted(flat: str) -> str | None:
    """The path that is ``flat`` with underscores for dots, in a UNet or CLIP; None if it has other words."""
    parts = _WORD.sub(lambda match: match[0].replace("_", "-"), flat).split("_")
    if not all(part.isdigit() or part in _SINGLE_WORDS or part.replace("-", "_") in _WORDS for part in parts):
        return None
    return ".".join(parts).replace("-", "_")


def _original(path: str, roots: Mapping[str, str]) -> str | None:
    """The original code's path of a module of diffusers."""
    if path in _REST_OF_DIFFUSERS:
        return _REST_OF_DIFFUSERS[path]
    match = _DIFFUSERS_BLOCK.fullmatch(path)
    if match is None or match[1] not in roots:
        return None
    return f"{roots[match[1]]}.{_RESNET_INNER.get(match[2], match[2])}".rstrip(".")


def _original_roots(inside: Collection[str]) -> dict[str, str]:
    """{module of diffusers: module of the original code}."""
    modules = {match[1] for key in inside if (match := _DIFFUSERS_BLOCK.fullmatch(key)) is not None}
    roots = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    roots["mid_block.resnets.1"] = "middle_block.2"
    for side, where, sampler, end in (
        ("input_blocks", "down_blocks", "downsamplers.0.conv", "op"),
        ("output_blocks", "up_blocks", "upsamplers.0.conv", "conv"),
    ):
        # The very first input block is the convolution in front of all levels.
        number = 1 if side == "input_blocks" else 0
        level = 0
        while f"{where}.{level}.resnets.0" in modules:
            count = 0
            while f"{where}.{level}.resnets.{count}" in modules:
                roots[f"{where}.{level}.resnets.{count}"] = f"{side}.{number}.0"
                attention = f"{where}.{level}.attentions.{count}"
                roots[attention] = f"{side}.{number}.1"
                number, count = number + 1, count + 1
            if f"{where}.{level}.{sampler}" in modules:
                if side == "input_blocks":
                    roots[f"{where}.{level}.{sampler}"] = f"{side}.{number}.0.{end}"
                    number += 1
                else:  # behind the last block of its level, and that one's attention
                    place = 2 if attention in modules else 1
                    roots[f"{where}.{level}.{sampler}"] = f"{side}.{number - 1}.{place}.{end}"
            level += 1
    return roots


def _modules(inside: Collection[str]) -> dict[str, dict[int, set[str]]]:
    """{block: {number of a module in it: first words of its keys}}."""
    modules: dict[str, dict[int, set[str]]] = {}
    for key in inside:
        match = _BLOCK.fullmatch(key)
        if match is not None:
            block, number, rest = match.groups()
            modules.setdefault(block, {}).setdefault(int(number), set()).add(rest.split(".")[0])
    return modules


def _roots(modules: Mapping[str, dict[int, set[str]]]) -> dict[str, str]:
    """{module of the original code: module of diffusers}."""
    roots: dict[str, str] = {}
    for side, ends in (("input_blocks", {"op"}), ("output_blocks", {"conv"})):
        where = "down_blocks" if side == "input_blocks" else "up_blocks"
        sampler = "downsamplers.0.conv" if side == "input_blocks" else "upsamplers.0.conv"
        numbers = sorted(int(block.split(".")[1]) for block in modules if block.startswith(side))
        level = count = 0
        for number in numbers:
            block = f"{side}.{number}"
            last = False
            for module, words in sorted(modules[block].items()):
                name = f"{block}.{module}"
                if "in_layers" in words:
                    roots[name] = f"{where}.{level}.resnets.{count}"
                elif "transformer_blocks" in words:
                    roots[name] = f"{where}.{level}.attentions.{count}"
                elif words & ends:
                    end = "op" if side == "input_blocks" else "conv"
                    roots[f"{name}.{end}"] = f"{where}.{level}.{sampler}"
                    last = True
                else:
                    continue
            # The very first input block is the convolution in front of all levels.
            if any("in_layers" in words for words in modules[block].values()):
                count += 1
            if last:
                level, count = level + 1, 0
    middle = {"resnets": 0, "attentions": 0}
    for module, words in sorted(modules.get("middle_block", {}).items()):
        kind = "attentions" if "transformer_blocks" in words else "resnets"
        roots[f"middle_block.{module}"] = f"mid_block.{kind}.{middle[kind]}"
        middle[kind] += 1
    return roots


def _paths(module: str, roots: Mapping[str, str]) -> Iterator[str]:
    """diffusers' paths of a module of the original code."""
    yield from _REST.get(module, ())
    parts = module.split(".")
    for length in range(min(4, len(parts)), 1, -1):
        root = roots.get(".".join(parts[:length]))
        if root is not None:
            rest = ".".join(parts[length:])
            rest = _RESNET.get(rest, rest)
            yield f"{root}.{rest}" if rest else root
            return


def _sdxl_modules() -> Iterator[str]:
    """The modules of SDXL's blocks, as diffusers calls them."""
    for side, count, sampler, attended in (
        ("down_blocks", 2, "downsamplers", (1, 2)),
        ("up_blocks", 3, "upsamplers", (0, 1)),
    ):
        for level in range(3):
            kinds = ("resnets", "attentions") if level in attended else ("resnets",)
            yield from (f"{side}.{level}.{kind}.{number}" for kind in kinds for number in range(count))
            if level < 2:
                yield f"{side}.{level}.{sampler}.0.conv"


_SDXL_ROOTS = _original_roots(list(_sdxl_modules()))
