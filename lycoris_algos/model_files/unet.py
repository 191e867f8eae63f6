"""A UNet of Stable Diffusion 1, 2 or XL under the names that diffusers gives its layers.

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
