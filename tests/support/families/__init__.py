"""What trainers call the layers of each model family, and which parameter of ComfyUI's model that is.

Written down by hand from what the trainers do, so that nothing of the pack under test decides what is right.
Only for the UNets of Stable Diffusion ComfyUI's own table of diffusers' names is taken. Every entry of
``SUBJECTS`` is one real model of ComfyUI, tiny or on the meta device (full width, without memory), and the
files that trainers would write for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ._layers import File, Layer, Shapes, Subject, key_of, tensors_of
from ._models import SUBJECTS as OLDER
from ._models import forget, load, shapes_of
from ._newer import NEWER

SUBJECTS: tuple[Subject, ...] = (*OLDER, *NEWER)

__all__ = [
    "SUBJECTS",
    "File",
    "Layer",
    "Outcome",
    "Shapes",
    "Subject",
    "forget",
    "key_of",
    "load",
    "outcome",
    "shapes_of",
]


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
    wired = (None, load(subject)) if subject.text else (load(subject), None)
    found = host.matching.match(adapters, host.keymap.known_layers(*wired))
    placed = {layer: [item.weight for item in place.made] for layer, place in found.placed.items()}
    wrong = [f"{item.key}: {item.reason}" for item in (*adapters.unmatched, *found.unmatched)]
    reached = 0
    for name, layer in file.layers.items():
        target = expected_target(layer, shapes, subject.prefix)
        if placed.get(name) == [target]:
            reached += 1
        else:
            wrong.append(f"{name}: placed at {placed.get(name)} instead of {target}")
    return Outcome(len(file.layers), reached, tuple(wrong))
