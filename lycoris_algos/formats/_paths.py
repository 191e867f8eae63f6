"""Where in a model a layer's name points: the prefix taken off, and what trainers vary in the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import hcp
from ._base import Dialect

_TEXT_NUMBER = re.compile(r"lora_te(\d)_|text_encoder_(\d)\.")
# What encoders are called by programs that name them, and how ComfyUI calls them.
_ENCODERS = {"clip_B.": "clip_l.", "clip_bigG.": "clip_g.", "t5.": "t5xxl."}


def model_paths(layer: str, dialects: tuple[Dialect, ...]) -> Iterator[str]:
    """Paths in a diffusion model that ``layer`` may mean, the name as it stands first."""
    yield from _varied(layer)
    for dialect in dialects:
        if not dialect.bare:
            for prefix in dialect.model_prefixes:
                if layer.startswith(prefix) and not dialect.is_text(layer):
                    yield from _varied(layer.removeprefix(prefix))


def text_paths(layer: str, dialects: tuple[Dialect, ...]) -> Iterator[tuple[int | None, str]]:
    """(number of the encoder, if the name has one; path) for each text encoder layer that it may mean.

    The path is inside the encoder, or begins with ComfyUI's name of it. A name without a sign of a text
    encoder may still mean one: LyCORIS' wrapper and PEFT wrap whatever they are given.
    """
    match = _TEXT_NUMBER.match(layer)
    number = int(match[1] or match[2]) if match else None
    yield number, layer
    for dialect in dialects:
        named = () if dialect.bare or dialect.text_prefixes == ("clip_l.", "clip_g.", "t5.") else _inner(dialect)
        for prefix in named:
            if layer.startswith(prefix):
                yield number, layer.removeprefix(prefix)
    for name, own in _ENCODERS.items():
        tables = ("", *hcp.DIALECT.model_prefixes)
        for table in tables:
            if layer.startswith(table + name):
                yield number, own + layer.removeprefix(table + name)


def _inner(dialect: Dialect) -> tuple[str, ...]:
    if dialect is hcp.DIALECT:
        return dialect.model_prefixes
    return (*dialect.text_prefixes, *(p for p in dialect.model_prefixes if p in _ANY_COMPONENT))


#: Prefixes of files that hold one component, whichever it is.
_ANY_COMPONENT = ("lycoris_", "base_model.model.")


def _varied(path: str) -> Iterator[str]:
    """``path`` without attention processors, which wrapped the projections that they are named after."""
    plain = path.replace(".processor.", ".")
    yield plain
    if plain != path and plain.endswith(".to_out"):
        yield f"{plain}.0"
