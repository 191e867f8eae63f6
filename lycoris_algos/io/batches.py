"""Many files at once: those that paths stand for, and which belong together by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import LycorisError
from ..text import listed, quoted
from ._part import free_names

_STEP = re.compile(r"(?:(?P<name>.*)-)?(?:step)?(?P<step>[0-9]{1,18})", re.DOTALL)


def gathered(paths: Iterable[Path], suffixes: Collection[str], *, recursive: bool = False) -> list[Path]:
    """The files that ``paths`` name, and those in the folders that they name with one of ``suffixes``.

    Hidden files do not count. Raises LycorisError where a path does not exist, or nothing is found.
    """
    files: list[Path] = []
    asked = list(paths)
    for path in asked:
        if path.is_dir():
            inside = path.rglob("*") if recursive else path.iterdir()
            files += sorted(
                own for own in inside if own.is_file() and _counts(own.relative_to(path), suffixes)
            )
        elif path.exists():
            files.append(path)
        else:
            raise LycorisError(f"there is no file or folder {quoted(str(path))}")
    if not files:
        names = listed([str(path) for path in asked], show=quoted)
        raise LycorisError(f"no files with {' or '.join(suffixes)} are in {names}")
    return list(dict.fromkeys(files))


def name_and_step(stem: str) -> tuple[str, int | None]:
    """The name of a file without the step of training at its end (``-300``, ``-step300``), and that step."""
    match = _STEP.fullmatch(stem)
    return (stem, None) if match is None else (match["name"] or "", int(match["step"]))


def free_together(paths: Iterable[Path]) -> list[Path]:
    """``paths``, or all of them with the same counter, so that none of them exists."""
    wanted = list(paths)
    for together in zip(*map(free_names, wanted), strict=True):
        if not any(path.exists() for path in together):
            return list(together)
    return wanted


def _counts(path: Path, suffixes: Collection[str]) -> bool:
    return path.suffix.lower() in suffixes and not any(part.startswith(".") for part in path.parts)
