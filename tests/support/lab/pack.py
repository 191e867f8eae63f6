"""Load this pack the way ComfyUI does: by path, under a name that is the path.

ComfyUI never imports a pack by a package name, so neither may a test or a benchmark: an absolute import
would make a second copy of the library with a registry of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from lab import paths


def load_pack() -> ModuleType:
    """The root module of this pack, loaded once. `prime_comfy` must have run."""
    name = str(paths.REPO).replace(".", "_x_")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, paths.REPO / "__init__.py", submodule_search_locations=[str(paths.REPO)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{paths.REPO} holds no pack")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
