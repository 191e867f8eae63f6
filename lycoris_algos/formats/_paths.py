"""From a layer's name in a file to its path in a model: prefixes are removed, known variations undone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ._base import Dialect

# Prefixes that may stand one before the other. Programs write two at most: one around a name of another.
_MOST_PREFIXES = 4
# Words of a prefix, at most.
_MOST_WORDS = 6
# Words that are no prefix: in flattened names what stands before "blocks" or "layers", in dotted ones modules
# with blocks of their own.
_LISTS = {
    "_": re.compile(
        "single|double|joint|down|up|mid|middle|input|output|transformer|stream|noise|context|refiner|vace"
        "|control|encoder|decoder|text|vision|self|adapter"
    ),
    ".": re.compile(r"(\w*_)?(adapter|refiner|encoder|decoder|control|controlnet|vision|audio)"),
}
# diffusers' attention processors of a text encoder, whose projections are called otherwise.
_TEXT_PROCESSOR = re.compile(r"(.*self_attn[._])to_(q|k|v|out)", re.DOTALL)
_TEXT_NUMBER = re.compile(r"lora_te(\d)_|text_encoder_(\d)\.")


def model_paths(layer: str, dialects: Sequence[Dialect], prefixes: int = _MOST_PREFIXES) -> Iterator[str]:
    """Paths in a diffusion model that ``layer`` may mean, the name as it stands first.

    At most so many ``prefixes`` are taken off.
    """
    yield from _varied(layer)
    for dialect in dialects if prefixes else ():
        for prefix in () if dialect.bare else dialect.model_prefixes:
            if layer.startswith(prefix):
                yield from model_paths(layer.removeprefix(prefix), dialects, prefixes - 1)


def text_paths(layer: str, dialects: Sequence[Dialect], prefixes: int = _MOST_PREFIXES) -> Iterator[str]:
    """Paths in a text encoder that ``layer`` may mean, the name as it stands first.

    A path is inside the encoder, or begins with ComfyUI's name of it. At most so many ``prefixes`` are taken
    off.
    """
    yield layer
    if layer.endswith("_"):
        yield layer.rstrip("_")
    projection = _TEXT_PROCESSOR.fullmatch(layer)
    if projection:
        yield f"{projection[1]}{projection[2]}_proj"
    for dialect in dialects if prefixes else ():
        for prefix, own in dialect.text_prefixes.items():
            if layer.startswith(prefix) and own != prefix:
                yield from text_paths(own + layer.removeprefix(prefix), dialects, prefixes - 1)
        for prefix in dialect.model_prefixes if dialect.any_component else ():
            if layer.startswith(prefix):
                yield from text_paths(layer.removeprefix(prefix), dialects, prefixes - 1)


def encoder_number(layer: str) -> int | None:
    """Which text encoder ``layer`` says it belongs to, from 1; None if it does not say."""
    match = _TEXT_NUMBER.match(layer)
    return int(match[1] or match[2]) if match else None


def tails(layer: str) -> Iterator[str]:
    """``layer`` without its first word, first two words and so on: the longest first, for unknown prefixes.

    A prefix has no number of a block, and does not end within the name of a list of blocks.
    """
    separator = "." if layer.count(".") > 1 else "_"
    words = layer.split(separator, _MOST_WORDS + 1)
    for word, following, count in zip(words, words[1:], range(1, len(words)), strict=False):
        if following.isdigit():
            return
        if not _LISTS[separator].fullmatch(word):
            yield separator.join(words[count:])


def _varied(path: str) -> Iterator[str]:
    """``path`` without attention processors, which wrapped the projections that they are named after.

    Then as it stands: a few models have processors with layers of their own.
    """
    plain = path.replace(".processor.", ".")
    yield plain
    if plain != path:
        if plain.endswith(".to_out"):
            yield f"{plain}.0"
        yield path
    if path.endswith("_"):  # some converters leave one
        yield path.rstrip("_")
