"""Which files the nodes offer, and where they are.

Adapters lie in ComfyUI's ``loras`` folder for most people and in ``lycoris`` for some, so both are offered
as one list. A file of ``loras`` is called what core's Load LoRA calls it, so that a workflow can switch
between the two nodes; a file of ``lycoris`` is called the same way, with ``lycoris/`` in front only where
``loras`` has a file of that name.

ComfyUI's page makes HTML of the names in a list, so one with ``<`` in it is listed with another character.
"""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...lycoris_algos.text import quoted

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
    return sorted(_listed())


def adapter_path(name: str) -> Path:
    """The file that ``name`` (as listed) stands for. Raises FileNotFoundError, in words, if there is none.

    ComfyUI resolves it, which keeps it inside the model folders whatever ``name`` says.
    """
    require_chosen(name)
    places = [_listed().get(name), *((folder, name) for folder in FOLDERS)]
    for folder, inner in filter(None, places):
        path = folder_paths.get_full_path(folder, inner)
        if path is not None:
            return Path(path)
    raise FileNotFoundError(
        f"the file {quoted(name)} is not in the folders 'loras' or 'lycoris' any more. "
        "Put it back, or choose another one (press R to refresh the list)"
    )


def name_on_page(name: str) -> str:
    """What a list on the page calls the file ``name``."""
    return name.replace("<", "‹")


def file_called(folder: str, name: str) -> str:
    """The file of ``folder`` that the page calls ``name``; ``name`` itself if it is one, or none is."""
    names = folder_paths.get_filename_list(folder)
    return name if name in names else next((own for own in names if name_on_page(own) == name), name)


def require_chosen(name: object) -> None:
    """Raises FileNotFoundError, in words, for a widget without a value: an imported workflow may have one."""
    if not isinstance(name, str) or not name:
        raise FileNotFoundError("no file is chosen: choose one from the list (press R to refresh it)")


def _listed() -> dict[str, tuple[str, str]]:
    """{name as listed: (folder, name in it)}."""
    known = {name_on_page(name): ("loras", name) for name in folder_paths.get_filename_list("loras")}
    for inner in folder_paths.get_filename_list("lycoris"):
        name = name_on_page(inner)
        while name in known:
            name = _PREFIX + name
        known[name] = ("lycoris", inner)
    return known


def fingerprint(path: Path) -> tuple[str, int, int]:
    """(path, modification time in ns, size): changes when a file is replaced or retrained."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size
