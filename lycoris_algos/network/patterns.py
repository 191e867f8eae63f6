"""PEFT's patterns of layer names, in bounded time: which is the first that the end of a name matches?

PEFT takes each key of ``alpha_pattern`` for a regular expression and tries one after the other on every
layer, as ``re.match(rf"(.*\\.)?({pattern})$", name)``. Nearly all of them are names, one for each layer, so
those are looked up; what really is an expression is tried for a limited time.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import regex

from ..errors import BadValueError
from ..text import quoted

# A name, its dots and hyphens escaped or not: perhaps from its beginning on, perhaps with PEFT's end.
_NAME = re.compile(r"(\^?)((?:[^\\^$*+?{}\[\]|()\n]|\\[.\-/_ ])*)\$?")
_LETTER = re.compile(r"\\?(.)")
_COUNTS = re.compile(r"[{,]([0-9]+)(?=[,}])")
# Letters of an expression, and of a name that is held against it.
_LONGEST = 1_000
# The same with every counted repetition of an expression written out, as if each were inside the next.
_LARGEST = 20_000
# Seconds of computing that one table may take for all layers of a file.
_MOST_SECONDS = 1.5
# Of them, seconds for one pattern and one layer: what is not hostile takes microseconds.
_MOST_OF_ONE = 0.2


class Patterns:
    """A table {pattern: value} of a configuration, in its order. It is read when it is asked first."""

    def __init__(self, table: Mapping[str, float]) -> None:
        self._table = dict(table)
        self._left = _MOST_SECONDS

    def first(self, *names: str) -> float | None:
        """The value of the first pattern that the end of one of ``names`` matches; None if there is none.

        Raises BadValueError for a pattern that cannot be read, and where trying all would take too long.
        """
        start = time.thread_time()
        try:
            order = min(map(self._order, names))
        except TimeoutError:
            self._left = 0
        self._left -= time.thread_time() - start
        if self._left < 0:
            raise BadValueError("PEFT's configuration chooses layers by patterns that take too long to try")
        return self._values[order] if order < len(self._values) else None

    @cached_property
    def _values(self) -> list[float]:
        return list(self._table.values())

    @cached_property
    def _names(self) -> dict[tuple[int, bool], dict[tuple[int, ...], dict[str, int]]]:
        """The patterns that are names: {place in the order} by name.

        They are kept by length and whether they have to be all of a name, then by where any letter may
        stand, for which there is a dot.
        """
        kept: dict[tuple[int, bool], dict[tuple[int, ...], dict[str, int]]] = {}
        for order, pattern in enumerate(self._table):
            match = _NAME.fullmatch(pattern)
            if match is not None:
                letters = list(_LETTER.finditer(match[2]))
                name = "".join(letter[1] for letter in letters)
                dots = tuple(place for place, letter in enumerate(letters) if letter[0] == ".")
                shapes = kept.setdefault((len(name), bool(match[1])), {})
                shapes.setdefault(dots, {}).setdefault(name, order)
        return kept

    @cached_property
    def _expressions(self) -> list[tuple[int, Any]]:
        return [
            (order, _compiled(pattern))
            for order, pattern in enumerate(self._table)
            if not _NAME.fullmatch(pattern)
        ]

    def _order(self, name: str) -> int:
        """The place of the first pattern that matches; behind the last one if none does."""
        best = min(self._orders_of_names(name), default=len(self._table))
        for order, expression in self._expressions:
            if order >= best:
                break
            if len(name) > _LONGEST:
                raise BadValueError(f"{quoted(name)} is too long for the patterns of PEFT's configuration")
            if expression.match(name, timeout=min(max(self._left, 0.01), _MOST_OF_ONE)):
                return order
        return best

    def _orders_of_names(self, name: str) -> Iterator[int]:
        for (length, whole), shapes in self._names.items():
            start = len(name) - length
            if start < 0 or (start and (whole or name[start - 1] != ".")):
                continue
            for dots, orders in shapes.items():
                letters = list(name[start:])
                for dot in dots:
                    letters[dot] = "."
                order = orders.get("".join(letters))
                if order is not None:
                    yield order


def _compiled(pattern: str) -> Any:
    """``pattern`` as PEFT tries it. Raises BadValueError if it is no expression, or too long."""
    if len(pattern) > _LONGEST or len(pattern) * _repeated(pattern) > _LARGEST:
        raise BadValueError(f"PEFT's configuration chooses layers by {quoted(pattern)}, which is too long")
    try:
        return regex.compile(rf"(.*\.)?({pattern})$")
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        reason = quoted(str(error))
        raise BadValueError(
            f"PEFT's configuration chooses layers by {quoted(pattern)}, which is no expression: {reason}"
        ) from error


def _repeated(pattern: str) -> int:
    """How often a letter stands in ``pattern`` at most, once its counted repetitions are written out."""
    return math.prod(max(int(count), 1) for count in _COUNTS.findall(pattern))
