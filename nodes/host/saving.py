"""Where nodes write files: inside ComfyUI's output folder, whatever the user typed, and again if one is gone.

ComfyUI does not run a node again whose inputs are the same, also when the file that it wrote was deleted. So
what was written is remembered by the node's widgets, and their fingerprint changes once a file is missing.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from pathlib import Path

import folder_paths

_FORBIDDEN = frozenset('<>:"|?*')
_PORTS = (f"{device}{number}" for device in ("com", "lpt") for number in range(1, 10))
_RESERVED = frozenset({"con", "prn", "aux", "nul", *_PORTS})
_MAX_PART = 120

_written: dict[tuple[str, ...], set[Path]] = defaultdict(set)
_generation: dict[tuple[str, ...], int] = defaultdict(int)


def output_path(folder: str, prefix: str, suffix: str = ".safetensors") -> Path:
    """The file that ``prefix`` ("name" or "sub/name") means below ``folder`` of the output folder.

    Its folder exists afterwards. Raises ValueError where a link would lead out of the output folder.
    """
    root = Path(folder_paths.get_output_directory()) / folder
    parts = [part for part in map(_safe, prefix.replace("\\", "/").split("/")) if part]
    path = root.joinpath(*(parts or ["lycoris"]))
    if path.suffix == suffix:
        path = path.with_suffix("")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"'{prefix}' leads out of the folder '{root}': choose another name")
    return path.with_name(path.name + suffix)


def _safe(part: str) -> str:
    """One component of a path with nothing in it that a file system takes for more than a name."""
    kept = "".join(c for c in part if c not in _FORBIDDEN and unicodedata.category(c)[0] != "C")
    kept = kept[:_MAX_PART].strip(" .")
    return f"_{kept}" if kept.split(".")[0].lower() in _RESERVED else kept


def remember(path: Path, *widgets: object) -> None:
    """``path`` was written by a node with these widget values."""
    _written[_key(widgets)].add(path)


def written_fingerprint(*widgets: object) -> str:
    """Changes once when a file that was written with these widget values has gone."""
    key = _key(widgets)
    gone = {path for path in _written[key] if not path.exists()}
    if gone:
        _written[key] -= gone
        _generation[key] += 1
    return str(_generation[key])


def _key(widgets: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(map(repr, widgets))
