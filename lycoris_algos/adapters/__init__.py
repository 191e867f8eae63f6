"""The algorithms, one file each. A file without a leading underscore that lies here is found by itself.

What a caller needs of this folder is ``LayerAdapter`` (one layer), ``apply_`` (adapters onto a weight) and
the registry's questions; the classes of the single algorithms are reached through the registry.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ._base import Component, Core, Part
from ._layer import LayerAdapter, apply_
from ._ready import ReadyLayer
from ._registry import component, cores, known_suffixes, modifiers, parts

for _module in sorted(module.name for module in iter_modules(__path__)):
    if not _module.startswith("_"):
        import_module(f".{_module}", __name__)

__all__ = [
    "Component",
    "Core",
    "LayerAdapter",
    "Part",
    "ReadyLayer",
    "apply_",
    "component",
    "cores",
    "known_suffixes",
    "modifiers",
    "parts",
]
