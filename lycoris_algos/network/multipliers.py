"""Multipliers block by block: rules in words, what they give a layer, and the number lists of other programs.

``double.0-9=0.5, attn.k=0, te=0`` are rules in order, of which the last that fits a layer decides; a layer
that none fits has multiplier 1. A rule is for a group of blocks or some of them by number, for a kind, for
layers whose names fit a pattern with ``*``, or for everything (``*``). With ``?`` before the sign, as in
``input.3?=0.5``, it need not fit anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..errors import BadValueError
from ..models import KINDS, Role
from ..text import Brief, listed, quoted

_RULE = re.compile(r"(?P<selector>[^=?,\s]+?)(?P<optional>\?)?\s*=\s*(?P<value>\S+)")
_BLOCKS = re.compile(r"(?P<group>[a-z][a-z_]*\d?)(?:\.(?P<first>\d+)(?:-(?P<last>\d+))?)?")
_KINDS = {*KINDS, *(kind.partition(".")[0] for kind in KINDS)}
_LARGEST = 1000.0
# More than any list has.
_MOST_RULES = 4096


class Layer(NamedTuple):
    """A layer that rules are asked about: its name in the file, and what it is."""

    name: str
    role: Role


@dataclass(frozen=True)
class MultiplierRule(Brief):
    """``selector=value``. ``optional``: it is no error if it fits nothing."""

    selector: str
    value: float
    optional: bool = False

    def fits(self, layer: Layer) -> bool:
        """Whether it is for ``layer``."""
        name, role = layer
        if "*" in self.selector:
            return fnmatchcase(name, self.selector)
        if role.kind == self.selector or role.kind.startswith(f"{self.selector}."):
            return True
        match = _BLOCKS.fullmatch(self.selector)
        if match is None or role.group != match["group"]:
            return False
        if match["first"] is None:
            return True
        first = int(match["first"])
        return role.index is not None and first <= role.index <= int(match["last"] or first)

    def __str__(self) -> str:
        short = f"{self.value:g}"
        value = short if float(short) == self.value else repr(self.value)
        return f"{self.selector}{'?' if self.optional else ''}={value}"


@dataclass(frozen=True)
class Multipliers(Brief):
    """Rules in order; see the module. Printed as ``parse`` reads them."""

    rules: tuple[MultiplierRule, ...] = ()

    @classmethod
    def parse(cls, text: str, presets: Mapping[str, str] | None = None) -> Multipliers:
        """Reads rules, divided by commas or lines; ``presets`` are texts that their names stand for.

        A list of numbers is read as the programs that wrote it mean it. Raises BadValueError for what is
        neither.
        """
        items = [item.strip() for item in re.split(r"[,\n]", text) if item.strip()]
        if len(items) > _MOST_RULES:
            raise BadValueError(
                f"there are {len(items)} multiplier rules, and at most {_MOST_RULES} are read"
            )
        numbers = [_number(item) for item in items]
        if items and None not in numbers:
            return cls(_of_vector([number for number in numbers if number is not None]))
        rules: list[MultiplierRule] = []
        for item in items:
            if item in (presets or {}):
                others = {name: rest for name, rest in (presets or {}).items() if name != item}
                rules += cls.parse((presets or {})[item], others).rules
            else:
                rules.append(_rule(item, presets or {}))
        return cls(tuple(rules))

    def of(self, layer: Layer) -> float:
        """The multiplier of ``layer``: that of the last rule that fits, else 1."""
        return next((rule.value for rule in reversed(self.rules) if rule.fits(layer)), 1.0)

    def check(self, layers: Iterable[Layer], where: str) -> None:
        """Raises BadValueError, naming it, for a rule that fits none of ``layers``, those of ``where``."""
        known = list(layers)
        for rule in self.rules:
            if not rule.optional and not any(map(rule.fits, known)):
                raise BadValueError(
                    f"the multiplier rule {quoted(str(rule))} fits no layer of {where}, which has "
                    f"{blocks_of(known)}. Correct it, or write {rule.selector}?= if it may fit nothing"
                )
        if self.rules and not any(rule.fits(layer) for rule in self.rules for layer in known):
            raise BadValueError(
                f"no multiplier fits a layer of {where}, which has {blocks_of(known)}: "
                "are they for another kind of model?"
            )

    def __str__(self) -> str:
        return ", ".join(map(str, self.rules))


def blocks_of(layers: Iterable[Layer]) -> str:
    """The blocks and kinds of ``layers``: "the blocks double.0-18, final and the kinds attn.q, ff"."""
    numbers: dict[str, set[int]] = {}
    kinds: set[str] = set()
    for _, role in layers:
        numbers.setdefault(role.group, set()).update(() if role.index is None else (role.index,))
        kinds.add(role.kind)
    blocks = [
        f"{group}.{min(own)}-{max(own)}" if len(own) > 1 else group + "".join(f".{n}" for n in own)
        for group, own in numbers.items()
    ]
    return f"the blocks {listed(blocks, 16)} and the kinds {listed(sorted(kinds, key=KINDS.index), 20)}"


def _rule(item: str, presets: Mapping[str, str]) -> MultiplierRule:
    match = _RULE.fullmatch(item)
    value = None if match is None else _number(match["value"])
    if match is None or value is None:
        known = f"; presets are {listed(presets)}" if presets else ""
        raise BadValueError(
            f"{quoted(item)} is no multiplier rule: write BLOCK=NUMBER, such as double.0-9=0.5, "
            f"attn.k=0 or te=0{known}"
        )
    selector = match["selector"]
    blocks = _BLOCKS.fullmatch(selector)
    if "*" not in selector and blocks is None and selector not in _KINDS:
        raise BadValueError(
            f"the multiplier rule {quoted(item)} is for no block and no kind: blocks are written double.3 or "
            f"double.0-9, kinds are {', '.join(KINDS)}, patterns of layers' names have a *"
        )
    if blocks is not None and blocks["last"] and int(blocks["last"]) < int(blocks["first"]):
        raise BadValueError(
            f"the multiplier rule {quoted(item)} counts backwards: write the lower number first"
        )
    return MultiplierRule(selector, value, match["optional"] is not None)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not -_LARGEST <= value <= _LARGEST:
        raise BadValueError(f"the multiplier {quoted(text)} must lie between {-_LARGEST:g} and {_LARGEST:g}")
    return value


# ---- lists of numbers ---------------------------------------------------------------------------------


def _numbered(group: str, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{group}.{number}" for number in numbers)


_ALL_FLUX = (*_numbered("double", range(19)), *_numbered("single", range(38)))
#: What the numbers of a list are for, in order, by how many there are. ``*`` is all that has no number.
_VECTORS: dict[int, tuple[str, ...]] = {
    # Stable Diffusion 1 and 2: blocks with attention, and all blocks.
    17: ("*", *_numbered("input", (1, 2, 4, 5, 7, 8)), "middle", *_numbered("output", range(3, 12))),
    26: ("*", *_numbered("input", range(12)), "middle", *_numbered("output", range(12))),
    # SDXL, likewise.
    12: ("*", *_numbered("input", (4, 5, 7, 8)), "middle", *_numbered("output", range(6))),
    20: ("*", *_numbered("input", range(9)), "middle", *_numbered("output", range(9))),
    # Flux, without a number for the rest and with one.
    57: _ALL_FLUX,
    58: ("*", *_ALL_FLUX),
}


def _of_vector(numbers: list[float]) -> tuple[MultiplierRule, ...]:
    selectors = _VECTORS.get(len(numbers))
    if selectors is None:
        known = ", ".join(map(str, sorted(_VECTORS)))
        raise BadValueError(
            f"a list of {len(numbers)} numbers is none that programs write for a model's blocks: those have "
            f"{known} numbers. Write rules instead, such as double.0-9=0.5"
        )
    return tuple(
        MultiplierRule(selector, number, optional=True)
        for selector, number in zip(selectors, numbers, strict=True)
    )
