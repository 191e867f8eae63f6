"""How sizes, names and file contents are put into messages: short, on one line, never raw.

Names and values come from strangers' files, so every one of them passes through here before a
person sees it: control characters would break a report, and a name may be megabytes long.
"""

from __future__ import annotations

import unicodedata

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


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


def single_line(text: str, limit: int) -> str:
    """``text`` without control or direction characters, on one line, at most ``limit`` long."""
    # One character of a file can be part of a long run of blanks, so cut generously, then exactly.
    head = text[: 8 * limit]
    shown = "".join(
        " " if character.isspace() else character
        for character in head
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    line = " ".join(shown.split())
    if len(line) <= limit and len(head) == len(text):
        return line
    return line[: limit - 1].rstrip() + "…"


def quoted(name: str, limit: int = 80) -> str:
    """A name from a file, in quotes, for a message."""
    return f"'{single_line(name, limit)}'"
