"""How names, sizes and objects get into texts for people: short, on one line, and harmless.

Keys, metadata and file names are strangers' text, and one and the same text goes to a web page (ComfyUI's
puts some of it into HTML, and makes links of ``[[label|url]]``), to a terminal, which obeys control
characters, and into a log. So a stranger's name enters a message through ``quoted`` or ``single_line``, a
list of them through ``listed`` or ``capped``, and every error and report passes ``bounded`` as a whole.
What is data stays as it is: names are cleaned where they become text, nowhere else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence, Sized
from dataclasses import fields
from enum import Enum
from pathlib import PurePath
from typing import Any

#: Characters of a name that are shown: a usual layer has up to 90.
NAME = 120
# Characters of an error. It is cut if it is longer by more than the slack: a context may go before it.
_MESSAGE = 6_000
_SLACK = 1_000
# Characters of a report.
_REPORT = 60_000
#: Lines of a list in a report.
LINES = 60
_REPR = 240

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
# Of HTML, as characters that look alike and mean nothing.
_TAGS = str.maketrans({"<": "‹", ">": "›", "&": "＆"})
_QUOTES = str.maketrans({'"': "”", "'": "’"})
# Of ComfyUI's progress text: [[label|url]] becomes a link, by way of a placeholder within the text.
_LINKS = re.compile(r"\[{2,}|\]{2,}|_{2,}(?=LNK)")
# Of addresses, which the page makes links of wherever it finds one.
_ADDRESSES = re.compile(r"(?<=:)/{2,}|w{3,}(?=\.)", re.IGNORECASE)


def single_line(text: str, limit: int = NAME) -> str:
    """A stranger's ``text`` for a message: one line, at most ``limit`` long, with nothing that is obeyed."""
    line = plain_line(text, limit).translate(_QUOTES).translate(_TAGS)
    return _ADDRESSES.sub(_first_character, _LINKS.sub(_first_character, line))


def quoted(name: str, limit: int = NAME) -> str:
    """A stranger's name, in quotes, for a message."""
    return f"'{single_line(name, limit)}'"


def listed(names: Collection[str], limit: int = 8, show: Callable[[str], str] = single_line) -> str:
    """Strangers' names in a row, each as ``show`` makes it: "a, b and 12 more"."""
    first = [show(name) for name, _ in zip(names, range(limit), strict=False)]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def capped(lines: Sequence[str], limit: int = LINES) -> list[str]:
    """``lines``, or the first ``limit`` of them and how many more there are."""
    more = len(lines) - limit
    return [*lines[:limit], f"… and {more} more"] if more > 0 else list(lines)


def bounded(text: str, limit: int = _MESSAGE) -> str:
    """A message or report as a whole: its own line breaks stay, other control characters and tags do not.

    The last line of defence. A name that comes through ``single_line`` is not changed by it.
    """
    if len(text) > limit + _SLACK:
        text = f"{text[:limit]} … and {len(text) - limit:,} more characters"
    return _LINKS.sub(_first_character, "\n".join(map(_printable, text.split("\n"))).translate(_TAGS))


def as_report(lines: Iterable[str]) -> str:
    """The lines of a report as one text, bounded."""
    return bounded("\n".join(lines), _REPORT)


def plain_line(text: str, limit: int) -> str:
    """``text`` on one line, at most ``limit`` long, without control and direction characters.

    For what is used again, such as the words of a prompt: everything that can be seen stays as it is.
    """
    # One character of a file can be part of a long run of blanks, so cut generously, then exactly.
    head = text[: 8 * limit]
    line = " ".join(_printable(head).split())
    if len(line) <= limit and len(head) == len(text):
        return line
    return line[: limit - 1].rstrip() + "…"


def human_size(count: int) -> str:
    """``count`` bytes for a person: '812 bytes', '12.3 MB' (decimal units, as shops and disks)."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} byte" if count == 1 else f"{count} bytes"


def size_pair(first: int, second: int) -> tuple[str, str]:
    """Two sizes to be compared: exact bytes where rounding would make them look the same."""
    pair = human_size(first), human_size(second)
    if pair[0] != pair[1]:
        return pair
    return f"{first:,} bytes", f"{second:,} bytes"


class Brief:
    """Gives a dataclass, and all that derive from it, a ``repr`` of one short line.

    ComfyUI sends the text of every input of a node that fails, and a file's adapters would be megabytes.
    Containers are counted, tensors told by dtype and shape.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Inherited, or its own: a dataclass leaves one alone that it finds, and else writes one.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        inner = ", ".join(f"{name}={_brief(value)}" for name, value in values)
        line = f"{type(self).__name__}({inner})"
        return line if len(line) <= _REPR else f"{line[: _REPR - 2]}…)"


def _brief(value: object) -> str:
    """One value of a ``repr``."""
    if isinstance(value, Brief):
        line = repr(value)
        return line if len(line) <= _REPR // 2 else f"{type(value).__name__}(…)"
    if isinstance(value, (str, PurePath)):
        return quoted(str(value), 60)
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"{len(value)} items" if isinstance(value, Sized) else type(value).__name__


def _printable(text: str) -> str:
    """``text`` with blanks for all kinds of white space, and without what cannot be seen."""
    if text.isprintable():
        return text
    return "".join(
        " " if character.isspace() else character
        for character in text
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )


def _first_character(match: re.Match[str]) -> str:
    return match[0][0]
