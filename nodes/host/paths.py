"""Which files the nodes offer, and where they are.

Adapters lie in ComfyUI's ``loras`` folder for most people and in ``lycoris`` for some, so both are offered
as one list. A file of ``loras`` is called what core's Load LoRA calls it, so that a workflow can switch
between the two nodes; a file of ``lycoris`` is called the same way, with ``lycoris/`` in front only where
``loras`` has a file of that name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import folder_paths

FOLDERS = ("loras", "lycoris")
_SUFFIXES = {".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin"}
_PREFIX = "lycoris/"


def register_folder() -> None:
    """Makes ``models/lycoris`` (and what extra_model_paths.yaml adds to it) known to ComfyUI."""
    default = os.path.join(folder_paths.models_dir, "lycoris")  # noqa: PTH118 - ComfyUI keeps strings
    folder_paths.add_model_folder_path("lycoris", default)
    paths, _ = folder_paths.folder_names_and_paths["lycoris"]
    folder_paths.folder_names_and_paths["lycoris"] = (paths, set(_SUFFIXES))


def adapter_names() -> list[str]:
    """Every adapter file of both folders, as the nodes list them."""
    loras = folder_paths.get_filename_list("loras")
    taken = set(loras)
    own = [_PREFIX + _slashes(n) if n in taken else n for n in _lycoris_names()]
    return sorted({*loras, *own})


def adapter_path(name: str) -> Path:
    """The file that ``name`` (as listed) stands for. Raises FileNotFoundError, in words, if it is gone."""
    for folder, inner in _readings(name):
        found = folder_paths.get_full_path(folder, inner)
        if found is not None:
            return Path(found)
    raise FileNotFoundError(
        f"the file '{name}' is not in the folders 'loras' or 'lycoris' any more. "
        "Put it back, or choose another one (press R to refresh the list)"
    )


def fingerprint(path: Path) -> tuple[str, int, int]:
    """(path, modification time in ns, size): changes when a file is replaced or retrained."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def _readings(name: str) -> Iterable[tuple[str, str]]:
    if _slashes(name).startswith(_PREFIX):
        yield "lycoris", name[len(_PREFIX) :]
    for folder in FOLDERS:
        yield folder, name


def _lycoris_names() -> list[str]:
    return list(folder_paths.get_filename_list("lycoris"))


def _slashes(name: str) -> str:
    return name.replace("\\", "/")
