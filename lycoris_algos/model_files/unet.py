"""A UNet of Stable Diffusion 1, 2 or XL under the names that diffusers gives its layers, and back.

The original code numbers blocks through (``input_blocks.7.1``), diffusers counts residual blocks and
attentions within each level (``down_blocks.2.attentions.0``). How many there are in a level is read off the
keys: a level ends with its downsampler, or on the way up with its upsampler.
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
    rest = {path: own for own, paths in _REST.items() for path in paths}
    for key in inside:
        path = key.removesuffix(".weight")
        if path == key:
            continue
        match = _DIFFUSERS_BLOCK.fullmatch(path)
        if path in rest:
            yield rest[path], key
        elif match is not None and match[1] in roots:
            inner = match[2]
            yield f"{roots[match[1]]}.{_RESNET_INNER.get(inner, inner)}".rstrip("."), key


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
