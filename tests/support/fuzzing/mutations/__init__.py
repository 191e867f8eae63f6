"""Ways to damage a draft. One decorated function each, found by its name; one file for each kind.

A function takes the draft, ``where`` and ``which``: numbers, to be taken modulo what there is to choose from.
One that finds nothing to damage leaves the draft alone.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ._registry import MUTATIONS

for _module in sorted(module.name for module in iter_modules(__path__)):  # they register their functions
    if not _module.startswith("_"):
        import_module(f".{_module}", __name__)

__all__ = ["MUTATIONS"]
