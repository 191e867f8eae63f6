"""Who imports whom in this pack, read from the syntax trees of its modules. Standard library only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, NODES = ROOT / "lycoris_algos", ROOT / "nodes"

#: The doors of the library: the package itself and the command line, which may import everything.
DOORS = {"", "cli", "__main__"}
#: What everything may import.
FOUNDATION = {"text", "errors", "_types"}


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of each import of a module in ``package``; relative ones are made absolute.

    ``from . import a, b`` yields package.a and package.b. The level is 0 for absolute ones.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield 0, node.module or ""
                continue
            parts = package.split(".")
            assert node.level <= len(parts), "a relative import leaves the pack"
            base = parts[: len(parts) - node.level + 1]
            if node.module:
                yield node.level, ".".join((*base, node.module))
            else:
                for alias in node.names:
                    yield node.level, ".".join((*base, alias.name))


def package_of(path: Path) -> str:
    """The dotted name of the package that the module ``path`` is in; the pack itself is "pack"."""
    return ".".join(("pack", *path.relative_to(ROOT).parent.parts))


def piece_of(path: Path) -> str:
    """The piece of the library that the module ``path`` belongs to; "" is the package itself."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def room_of(name: str) -> str | None:
    """The room of a dotted name in the pack: a folder of the library, "nodes/host" or "nodes"."""
    parts = name.split(".")
    if parts[:3] == ["pack", "nodes", "host"]:
        return "nodes/host"
    if parts[:2] == ["pack", "nodes"]:
        return "nodes"
    if parts[:2] == ["pack", "lycoris_algos"] and len(parts) > 2 and (LIBRARY / parts[2]).is_dir():
        return parts[2]
    return None


def rooms() -> dict[str, set[str]]:
    """{room: the other rooms that it imports}, from every module of the pack."""
    found: dict[str, set[str]] = {}
    for path in sorted((*LIBRARY.rglob("*.py"), *NODES.rglob("*.py"))):
        room = room_of(package_of(path))
        if room is None:
            continue
        own = found.setdefault(room, set())
        for level, name in imports(path.read_text("utf-8"), package_of(path)):
            other = room_of(name) if level else None
            if other is not None and other != room:
                own.add(other)
    return found


def without_detours(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """``graph`` (which has no circles) without the edges that a longer way replaces."""

    def reached(start: str) -> set[str]:
        direct = graph.get(start, set())
        return direct.union(*(reached(other) for other in direct))

    return {
        start: {end for end in ends if not any(end in reached(other) for other in ends)}
        for start, ends in graph.items()
    }
