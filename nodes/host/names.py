"""The names that a model answers to: paths of its parameters, and everything that others call them.

A name of a file is looked up without its trainer's prefix, as it stands and with underscores for dots. So
every path is known under every prefix, dotted and flattened, whoever brought it in: the model's own keys,
ComfyUI's key maps or this pack's model families, in this order of trust.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

#: A weight's key, or (key, (dim, start, length)) for a slice, or (key, slice or None, function).
Target = str | tuple[Any, ...]

_ENCODER = re.compile(r"(?P<name>[^.]+)\.transformer\.(?P<path>.+)")
# Modules that wrap the layers of a text encoder in some versions of it, and not in others.
_WRAPPERS = ("text_model.", "model.", "bert.")
_LANGUAGE_MODELS = ("", "language_model.", "model.language_model.")


class NameIndex:
    """Targets by path."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[Target, None]] = defaultdict(dict)
        self._flat: dict[str, dict[Target, None]] = defaultdict(dict)

    def add(self, path: str, target: Target) -> None:
        """Adds a meaning of ``path``, after those that it has."""
        self._exact[path].setdefault(target)
        self._flat[flattened(path)].setdefault(target)

    def look_up(self, path: str) -> Iterable[Target]:
        """What ``path`` may mean, best first: to the letter if anything is, else with dots as underscores."""
        found: Iterable[Target] = self._exact.get(path) or self._flat.get(flattened(path)) or ()
        return found


def flattened(path: str) -> str:
    """``path`` as kohya writes it."""
    return path.replace(".", "_")


def parameter_path(key: str) -> str:
    """The name of the layer that a parameter belongs to; a parameter that is no weight is its own."""
    return key.removesuffix(".weight")


def encoder_of(key: str) -> str | None:
    """ComfyUI's name of the text encoder that the parameter ``key`` of a CLIP belongs to."""
    match = _ENCODER.fullmatch(key)
    return None if match is None else match["name"]


def encoder_paths(key: str) -> Iterator[str]:
    """Paths of the parameter ``key`` of a CLIP.

    They are the key itself, the path inside the encoder with ComfyUI's name of it before it, and the path
    alone, where that of transformers' module may have other modules around it.
    """
    path = parameter_path(key)
    yield path
    match = _ENCODER.fullmatch(path)
    if match is None:
        return
    inner = match["path"]
    yield f"{match['name']}.{inner}"
    yield inner
    for wrapper in _WRAPPERS:
        if inner.startswith(wrapper):
            for outer in _LANGUAGE_MODELS if wrapper == "model." else ("",):
                yield outer + inner.removeprefix(wrapper)
