"""Where nodes write files: inside ComfyUI's output folder, whatever the user typed, and again if one is gone.

ComfyUI does not run a node again whose inputs are the same, also when the file that it wrote was deleted. So
what was written is remembered by the node's widgets, and their fingerprint changes once a file is missing.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import folder_paths

from ...lycoris_algos import LycorisError
from ...lycoris_algos.io import possible_name
from ...lycoris_algos.text import quoted


def output_path(folder: str, prefix: str, suffix: str = ".safetensors") -> Path:
    """The file that ``prefix`` ("name" or "sub/name") means below ``folder`` of the output folder.

    Nothing is made. Raises LycorisError where a link would lead out of the output folder.
    """
    root = Path(folder_paths.get_output_directory()) / folder
    parts = [part for part in map(possible_name, prefix.replace("\\", "/").split("/")) if part]
    path = root.joinpath(*(parts or ["lycoris"]))
    if path.suffix == suffix:
        path = path.with_suffix("")
    if not _inside(path.parent, root):
        raise LycorisError(
            f"{quoted(prefix)} leads out of the folder {quoted(str(root))}: choose another name"
        )
    return path.with_name(path.name + suffix)


@contextmanager
def folder_of(path: Path) -> Iterator[None]:
    """The folder of ``path`` exists within the block, which writes there.

    What had to be made for that is removed again if the block fails, unless there is something in it. Raises
    LycorisError, in words, if it cannot be made.
    """
    made: list[Path] = []
    try:
        try:
            made += [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LycorisError(f"the folder of {quoted(path.name)} cannot be made: {_why(error)}") from error
        yield
    except BaseException:
        with suppress(OSError):  # not empty: another run writes there too
            for folder in made:
                folder.rmdir()
        raise


def _inside(folder: Path, root: Path) -> bool:
    """Whether ``folder``, links followed as far as it exists, lies in ``root``."""
    try:
        return folder.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _why(error: OSError) -> str:
    # Windows has no other word for a path that is too long than that there is none.
    if error.errno == errno.ENAMETOOLONG or isinstance(error, FileNotFoundError):
        return "its name is too long, choose a shorter one"
    return f"the system reports: {error.strerror or error}"


class _Written:
    """The files that nodes have written, by the values of their widgets."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, ...], set[Path]] = defaultdict(set)
        self._lost: dict[tuple[str, ...], int] = defaultdict(int)

    def remember(self, path: Path, *widgets: object) -> None:
        """``path`` was written by a node with these widget values."""
        self._files[tuple(map(repr, widgets))].add(path)

    def fingerprint(self, *widgets: object) -> str:
        """Changes once when a file that was written with these widget values has gone."""
        key = tuple(map(repr, widgets))
        gone = {path for path in self._files[key] if not path.exists()}
        if gone:
            self._files[key] -= gone
            self._lost[key] += 1
        return str(self._lost[key])


WRITTEN = _Written()
