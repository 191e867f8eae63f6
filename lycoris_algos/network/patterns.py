"""PEFT's patterns of layer names, in bounded time: which is the first that the end of a name matches?

PEFT takes each key of ``alpha_pattern`` for a regular expression and tries one after the other on every
layer, as ``re.match(rf"(.*\\.)?({pattern})$", name)``. Nearly all of them are names, one for each layer, so
those are looked up; what really is an expression is followed in counted steps (_expressions.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from ..errors import BadValueError
from ..text import quoted
from ._expressions import Node, Steps, Text, as_name, is_end, read

# Everything but the dot that means more than itself.
_SPECIAL = re.compile(r"[\\^$*+?{}\[\]|()]")
_DOT = re.compile(r"\.")
# Letters of an expression, and of a name that is held against it.
_LONGEST = 1_000
# Steps that the patterns of one table may take on all layers of a file: about a second.
_MOST_STEPS = 1_500_000


class Patterns:
    """A table {pattern: value} of a configuration, in its order. It is read when it is asked first."""

    def __init__(self, table: Mapping[str, float]) -> None:
        self._table = dict(table)

    def first(self, *names: str) -> float | None:
        """The value of the first pattern that the end of one of ``names`` matches; None if there is none.

        Raises BadValueError for a pattern that cannot be read, and where there is too much to be tried.
        """
        order = min(map(self._index.order, names))
        return self._values[order] if order < len(self._values) else None

    @cached_property
    def _values(self) -> list[float]:
        return list(self._table.values())

    @cached_property
    def _index(self) -> _Index:
        return _Index(list(self._table))


class _Index:
    """Patterns by what they are: names, whole or the ends of some, and expressions."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._steps = Steps(_MOST_STEPS)
        self._count = len(patterns)
        #: By length and whether they have to be all of a name; then by where any letter may stand, for which
        #: there is a dot: {name: place in the order}.
        self._names: dict[tuple[int, bool], dict[tuple[int, ...], dict[str, int]]] = {}
        self._expressions: list[tuple[int, Node]] = []
        for order, pattern in enumerate(patterns):
            if not _SPECIAL.search(pattern):
                self._add_name(pattern, [dot.start() for dot in _DOT.finditer(pattern)], False, order)
                continue
            if len(pattern) > _LONGEST:
                raise BadValueError(
                    f"PEFT's configuration chooses layers by {quoted(pattern)}, which is too long"
                )
            node = read(pattern, self._steps)
            name = as_name(node)
            if name is None:
                self._expressions.append((order, node))
            else:
                self._add_name(*name, order)

    def _add_name(self, name: str, dots: Sequence[int], whole: bool, order: int) -> None:
        shapes = self._names.setdefault((len(name), whole), {})
        shapes.setdefault(tuple(dots), {}).setdefault(name, order)

    def order(self, name: str) -> int:
        """The place of the first pattern that matches; behind the last one if none does."""
        best = min(self._orders_of_names(name), default=self._count)
        if not self._expressions or self._expressions[0][0] > best:
            return best
        if len(name) > _LONGEST:
            raise BadValueError(f"{quoted(name)} is too long for the patterns of PEFT's configuration")
        text = Text(name, self._steps)
        earlier = (order for order, node in self._expressions if order < best and is_end(node, text))
        return next(earlier, best)

    def _orders_of_names(self, name: str) -> Iterator[int]:
        self._steps.take(len(self._names))
        for (length, whole), shapes in self._names.items():
            start = len(name) - length
            if start < 0 or (start and (whole or name[start - 1] != ".")):
                continue
            for dots, orders in shapes.items():
                self._steps.take(4 + length // 8)
                letters = list(name[start:])
                for dot in dots:
                    letters[dot] = "."
                found = orders.get("".join(letters))
                if found is not None:
                    yield found
