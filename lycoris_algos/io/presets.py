"""A user's named texts: a file with a line ``NAME: text`` for each, ``#`` begins a remark."""

from __future__ import annotations

from pathlib import Path

from ..errors import BadValueError
from ..text import quoted

# Nobody types more.
_LARGEST = 1_000_000


def read_presets(path: Path) -> dict[str, str]:
    """{name: text} of the file; nothing if there is none. Raises BadValueError for what is no such file."""
    try:
        if path.stat().st_size > _LARGEST:
            raise BadValueError(f"{quoted(path.name)} is too large for a list of presets")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadValueError(f"the presets in {quoted(path.name)} cannot be read: {error}") from error
    presets: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if not colon or not name or not rest:
            raise BadValueError(
                f"line {number} of {quoted(path.name)} is {quoted(text)}: write NAME: double.0-9=0.5, te=0"
            )
        presets[name] = rest
    return presets
