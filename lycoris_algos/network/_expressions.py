"""Regular expressions of strangers, matched in counted steps instead of by a search that backtracks.

An expression is read into a tree, and the tree is followed through a text from all positions at once, as
Thompson did: a set of positions is a number, with bit i for the one before letter i. So the work is the size
of the expression times the length of the text, and a repetition takes no more rounds than the text has
letters. Lookarounds, back-references and flags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import BadValueError
from ..text import Brief, quoted

_REPEAT = re.compile(r"[*+?]|\{(?!\})(\d{0,9})(?:(,)(\d{0,9}))?\}")
_GROUP = re.compile(r"\((\?:|\?P<\w+>)?(?!\?)")
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda c: c.isalnum() or c == "_",
    "s": str.isspace,
}
_CONTROL = {"n": "\n", "t": "\t", "r": "\r"}
_DEEPEST = 40
# How many steps of following an expression take as long as reading one letter of it.
_READING = 6


class Steps:
    """How much work is left."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, count: int = 1) -> None:
        """Raises BadValueError where there were fewer than ``count``."""
        self._left -= count
        if self._left < 0:
            raise BadValueError("PEFT's configuration chooses layers by patterns that take too long to try")


# ---- matching -------------------------------------------------------------------------------------------


class Text:
    """A text, and where in it a letter of some kind stands."""

    def __init__(self, name: str, steps: Steps) -> None:
        self.end = 1 << len(name)
        self.steps = steps
        self._masks: dict[str, int] = {}
        self._known: dict[_Letter, int] = {}
        steps.take(len(name))
        for place, letter in enumerate(name):
            self._masks[letter] = self._masks.get(letter, 0) | 1 << place

    def where(self, letter: _Letter) -> int:
        """The positions before letters that ``letter`` accepts."""
        if letter not in self._known:
            self.steps.take(len(self._masks))
            self._known[letter] = sum(mask for own, mask in self._masks.items() if letter.accepts(own))
        return self._known[letter]


@dataclass(frozen=True, eq=False)
class Node(Brief):
    """A piece of an expression."""

    def after(self, starts: int, text: Text) -> int:
        """The positions in which it can end, begun in any of ``starts``."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class _Letter(Node):
    accepts: Callable[[str], bool]
    #: The only one that it accepts; "" for a kind of letters.
    letter: str = ""

    def after(self, starts: int, text: Text) -> int:
        return (starts & text.where(self)) << 1


@dataclass(frozen=True, eq=False)
class _Edge(Node):
    at_end: bool

    def after(self, starts: int, text: Text) -> int:
        return starts & (text.end if self.at_end else 1)


@dataclass(frozen=True, eq=False)
class _Sequence(Node):
    items: list[Node] = field(default_factory=list)

    def after(self, starts: int, text: Text) -> int:
        for item in self.items:
            if not starts:
                break
            text.steps.take()
            starts = item.after(starts, text)
        return starts


@dataclass(frozen=True, eq=False)
class _Choice(Node):
    options: list[Node]

    def after(self, starts: int, text: Text) -> int:
        found = 0
        for option in self.options:
            text.steps.take()
            found |= option.after(starts, text)
        return found


@dataclass(frozen=True, eq=False)
class _Repeat(Node):
    item: Node
    least: int
    most: int | None

    def after(self, starts: int, text: Text) -> int:
        for _ in range(self.least):
            text.steps.take()
            before, starts = starts, self.item.after(starts, text)
            if starts == before:  # nothing is left, or nothing more is reached
                break
        found = new = starts
        count = self.least
        while new and (self.most is None or count < self.most):
            text.steps.take()
            new = self.item.after(new, text) & ~found
            found |= new
            count += 1
        return found


def _only(letter: str) -> _Letter:
    return _Letter(letter.__eq__, letter)


_DOT = _only(".")
_ANY = _Letter("\n".__ne__)


def as_name(node: Node) -> tuple[str, list[int], bool] | None:
    """(text, where any letter may stand in it, whether it has to be all) of a node without any choice."""
    items = node.items if isinstance(node, _Sequence) else [node]
    whole = bool(items) and isinstance(items[0], _Edge) and not items[0].at_end
    items = items[whole:]
    if items and isinstance(items[-1], _Edge) and items[-1].at_end:
        items = items[:-1]
    letters = [item for item in items if isinstance(item, _Letter) and (item.letter or item is _ANY)]
    if len(letters) < len(items):
        return None
    dots = [place for place, item in enumerate(letters) if item is _ANY]
    return "".join(item.letter or "." for item in letters), dots, whole


def is_end(node: Node, text: Text) -> bool:
    """Whether ``node`` accepts all of ``text``, or all that follows one of its dots."""
    starts = 1 | text.where(_DOT) << 1
    return bool(node.after(starts, text) & text.end)


# ---- reading --------------------------------------------------------------------------------------------


def read(pattern: str, steps: Steps) -> Node:
    """The tree of ``pattern``, in Python's syntax. Raises BadValueError if it is none, or too involved."""
    return _Parser(pattern, steps).parse()


class _Parser:
    def __init__(self, pattern: str, steps: Steps) -> None:
        self._pattern = pattern
        self._steps = steps
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._pattern):
            raise self._error("a bracket is closed that was not opened")
        return node

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _Choice(options)

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._at < len(self._pattern) and self._peek() not in "|)":
            self._steps.take(_READING)
            items.append(self._repeated(self._item()))
        return _Sequence(items)

    def _repeated(self, item: Node) -> Node:
        match = _REPEAT.match(self._pattern, self._at)
        if match is None:
            return item
        if isinstance(item, _Edge):
            raise self._error("there is nothing to repeat")
        self._at = match.end()
        self._take("?")  # as few as possible, which is the same for a match as a whole
        if _REPEAT.match(self._pattern, self._at):
            raise self._error("a repetition is repeated")
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(match[0], (0, None))
        if match[0][0] == "{":
            least = int(match[1] or 0)
            most = least if not match[2] else int(match[3]) if match[3] else None
        if most is not None and most < least:
            raise self._error("a repetition has its limits reversed")
        return _Repeat(item, least, most)

    def _item(self) -> Node:
        letter = self._next()
        if letter == "(":
            return self._group()
        if letter == "[":
            return _Letter(self._set())
        if letter == "\\":
            return self._escape()
        if letter in "^$":
            return _Edge(letter == "$")
        if _REPEAT.match(self._pattern, self._at - 1):
            raise self._error("there is nothing to repeat")
        return _ANY if letter == "." else _only(letter)

    def _group(self) -> Node:
        match = _GROUP.match(self._pattern, self._at - 1)
        self._depth += 1
        if match is None or self._depth > _DEEPEST:
            raise self._error("it is too involved")
        self._at = match.end()
        node = self._choice()
        self._depth -= 1
        if not self._take(")"):
            raise self._error("a bracket is not closed")
        return node

    def _escape(self) -> Node:
        letter = self._next()
        return _Edge(letter == "Z") if letter in "AZ" else self._escaped(letter)

    def _escaped(self, letter: str) -> _Letter:
        """What ``letter`` means behind a backslash."""
        kind = _CLASSES.get(letter.lower())
        if kind is not None:
            return _Letter(kind if letter.islower() else lambda c: not kind(c))
        if letter in _CONTROL:
            return _only(_CONTROL[letter])
        if letter.isascii() and letter.isalnum():
            raise self._error(f"\\{letter} is too involved")
        return _only(letter)

    def _set(self) -> Callable[[str], bool]:
        """What square brackets accept."""
        negated = self._take("^")
        accepted: list[Callable[[str], bool]] = []
        while not accepted or self._peek() != "]":
            self._steps.take(_READING)
            low = self._member()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                accepted.append(self._range(low, self._member()))
            else:
                accepted.append(low.accepts)
        self._at += 1
        return lambda c: any(own(c) for own in accepted) is not negated

    def _member(self) -> _Letter:
        letter = self._next()
        return self._escaped(self._next()) if letter == "\\" else _only(letter)

    def _range(self, low: _Letter, high: _Letter) -> Callable[[str], bool]:
        if not low.letter or not high.letter or high.letter < low.letter:
            raise self._error("a range of letters has no beginning or end")
        return lambda c: low.letter <= c <= high.letter

    def _peek(self) -> str:
        if self._at >= len(self._pattern):
            raise self._error("it ends too early")
        return self._pattern[self._at]

    def _next(self) -> str:
        letter = self._peek()
        self._at += 1
        return letter

    def _take(self, letter: str) -> bool:
        found = self._pattern.startswith(letter, self._at)
        self._at += found
        return found

    def _error(self, reason: str) -> BadValueError:
        return BadValueError(f"PEFT's configuration chooses layers by {quoted(self._pattern)}: {reason}")
