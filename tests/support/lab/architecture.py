"""Draw the picture in docs/architecture.md from what the rooms of the pack really import.

    python -m lab.architecture

Writes the picture into the document, between its fences; tests/unit/test_documents.py holds that they agree.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from imports import ROOT, rooms, without_detours

DOCUMENT = ROOT / "docs" / "architecture.md"
_FENCED = re.compile(r"(?<=```mermaid\n).*?(?=```)", re.DOTALL)


def picture(graph: Mapping[str, set[str]]) -> str:
    """A Mermaid flowchart of {room: rooms that it imports}: arrows point at what is imported.

    Where a room reaches another through a third as well, that arrow is left out.
    """
    lines = ["flowchart TD"]
    plain = without_detours(graph)
    lines += [f'    {_id(room)}["{room}"]' for room in sorted(plain)]
    lines += [f"    {_id(room)} --> {_id(other)}" for room in sorted(plain) for other in sorted(plain[room])]
    return "".join(f"{line}\n" for line in lines)


def _id(room: str) -> str:
    return room.replace("/", "_")


def drawn(document: str) -> str:
    """The picture that is in ``document``; "" where there is none."""
    found = _FENCED.search(document)
    return found.group() if found else ""


def write(path: Path = DOCUMENT) -> None:
    """Replaces the picture in the document by today's."""
    text = path.read_text("utf-8")
    path.write_text(_FENCED.sub(lambda _: picture(rooms()), text, count=1), "utf-8")


if __name__ == "__main__":
    write()
    sys.exit()
