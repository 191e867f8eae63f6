"""The class ``Family``: how other programs name the layers of a model that ComfyUI knows. Strings only."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ..text import Brief

Number = int | Fraction

#: The first index in a path, which counts blocks.
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
#: What stands for that number in the names of rules.
BLOCK = "{}"
# The weight of a norm where it is called that way, dotted or flattened.
_NORM_SCALE = re.compile(r"(.*norms?(?:[._]\d+)?)[._](?:scale|weight)", re.DOTALL)


def layer_of(parameter: str) -> str:
    """The path of the layer that the path ``parameter`` is the weight of, or ``parameter`` if it is a layer.

    A weight is called ``weight``; one of a norm also ``scale``, by some programs, and ComfyUI renames them.
    """
    path = parameter.removesuffix(".weight")
    norm = _NORM_SCALE.fullmatch(path)
    return path if norm is None else norm[1]


@dataclass(frozen=True)
class FusedRows:
    """Some rows of a fused weight of R rows and C columns, in multiples of both."""

    #: (of R, of C)
    start: tuple[Number, Number]
    count: tuple[Number, Number]

    def of(self, rows: int, columns: int) -> tuple[int, int] | None:
        """(start, count) in a weight of that size; None if that is no range of its rows."""
        start, count = (Fraction(rows * r + columns * c) for r, c in (self.start, self.count))
        whole = start.denominator == count.denominator == 1
        return (int(start), int(count)) if whole and start >= 0 < count and start + count <= rows else None


@dataclass(frozen=True)
class Rule:
    """One layer under another name. ``{}`` stands for the number of a block, in both names."""

    #: The name that other programs have for it.
    name: str
    #: The layer of ComfyUI's model (``layer_of`` its parameter).
    native: str
    #: The rows of that parameter which are meant; all of them by default.
    rows: FusedRows | None = None
    #: Whether the model stores the two halves of the rows the other way round.
    swapped: bool = False
    #: Whether it does so where those halves are all there is: twice as many rows as columns.
    swapped_pair: bool = False
    #: Whether diffusers has another name for the layer, and this one is of other programs.
    alias: bool = False


@dataclass(frozen=True)
class Located:
    """A parameter of a model, or some of its rows, that a name stands for."""

    key: str
    rows: tuple[int, int] | None = None
    swapped: bool = False


@dataclass(frozen=True, eq=False)
class Family(Brief):
    """A model family.

    ``marks`` are parameters that its models have, all of them; no other family does. ``signs`` are patterns
    of flattened layer paths that only adapters for it have. ``keeps_names``: diffusers calls every layer that
    has no rule as ComfyUI does.
    """

    name: str
    title: str
    marks: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    signs: tuple[str, ...] = ()
    #: What metadata calls it: beginnings of ``modelspec.architecture`` and ``ss_base_model_version``.
    labels: tuple[str, ...] = ()
    keeps_names: bool = False
    #: The part of the model in which the paths of files begin, with a dot after it.
    component: str = ""

    def owns(self, parameters: Container[str]) -> bool:
        """Whether a model with these parameters is of this family."""
        return bool(self.marks) and all(mark in parameters for mark in self.marks)

    def names(self, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Located]]:
        """(name, what it stands for) of every rule that a model with parameters of ``shapes`` has use for.

        Biases are left out: they belong to their weights.
        """
        for _, name, located in self._known(shapes):
            yield name, located
        yield from self._inside(shapes)

    def diffusers_names(self, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Located]]:
        """The same, of the names in diffusers alone; the first of a layer is today's."""
        ruled = set()
        for rule, name, located in self._known(shapes):
            ruled.add(located.key)
            if not rule.alias:
                yield name, located
        for key in shapes if self.keeps_names else ():
            if key not in ruled:
                yield layer_of(key), Located(key)
        yield from self._inside(shapes)

    def native_names(self, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, tuple[Located, ...]]]:
        """(layer of ComfyUI's model, what it consists of) in a model whose parameters diffusers named.

        The inverse of ``diffusers_names``: what ComfyUI has as one layer may be several there, in order.
        """
        by_name: dict[str, list[Rule]] = defaultdict(list)
        for rule in self.rules:
            if not rule.alias:
                by_name[rule.name].append(rule)
        parts: dict[str, list[tuple[Rule, str]]] = defaultdict(list)
        for key in shapes:
            for form, block in _forms(layer_of(key)).items():
                for rule in by_name.get(form, ()):
                    parts[rule.native.replace(BLOCK, block)].append((rule, key))
        for native, own in parts.items():
            located = _consisting_of(own, shapes)
            if located:
                yield native, located

    def _inside(self, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Located]]:
        for key in shapes if self.component else ():
            if key.startswith(self.component):
                yield layer_of(key.removeprefix(self.component)), Located(key)

    def _known(self, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[Rule, str, Located]]:
        by_native: dict[str, list[Rule]] = defaultdict(list)
        for rule in self.rules:
            by_native[rule.native].append(rule)
        for key, shape in shapes.items():
            for form, block in _forms(layer_of(key)).items():
                for rule in by_native.get(form, ()):
                    located = _locate(rule, key, shape)
                    if located is not None:
                        yield rule, rule.name.replace(BLOCK, block), located


def _forms(path: str) -> dict[str, str]:
    """{a name that a rule may have for ``path``: the number of the block that it stands for}."""
    match = _INDEX.search(path)
    forms = {path: ""}
    if match:
        forms[f"{path[: match.start()]}{BLOCK}{path[match.end() :]}"] = match.group()
    return forms


def _consisting_of(
    parts: Sequence[tuple[Rule, str]], shapes: Mapping[str, Sequence[int]]
) -> tuple[Located, ...]:
    """What a layer of ComfyUI's model with ``parts`` (rule, key in diffusers) consists of; () if unclear."""
    rule, key = parts[0]
    rows, columns = (*shapes[key], 0, 0)[:2]
    if rule.rows is None:
        return (Located(key, None, rule.swapped or (rule.swapped_pair and rows == 2 * columns)),)
    total = sum(shapes[own][0] for _, own in parts)
    placed = [
        (rule.rows.of(total, columns), own)
        for rule, own in parts
        if rule.rows is not None and len(shapes[own]) > 1
    ]
    known = sorted((located, own) for located, own in placed if located is not None)
    position = 0
    for (start, count), own in known:
        if start != position or count != shapes[own][0]:
            return ()
        position += count
    return tuple(Located(own) for _, own in known) if position == total else ()


def _locate(rule: Rule, key: str, shape: Sequence[int]) -> Located | None:
    rows, columns = (*shape, 0, 0)[:2]
    swapped = rule.swapped or (rule.swapped_pair and rows == 2 * columns)
    if rule.rows is None:
        return Located(key, None, swapped)
    located = rule.rows.of(rows, columns) if len(shape) > 1 else None
    return None if located is None else Located(key, located, swapped)


def renamed(pairs: Mapping[str, str], *, within: tuple[str, str] = ("", "")) -> tuple[Rule, ...]:
    """Rules that only rename: {other name: native name}, both below ``within`` (other, native)."""
    other, native = within
    return tuple(Rule(other + name, native + own) for name, own in pairs.items())


def fused(native: str, names: Iterable[str], parts: Iterable[FusedRows]) -> tuple[Rule, ...]:
    """Rules for the parts of the fused layer ``native``, in order.

    Each is known by its name and, in OneTrainer's "OMI" files, by its number.
    """
    return tuple(
        rule
        for number, (name, rows) in enumerate(zip(names, parts, strict=True))
        for rule in (Rule(name, native, rows), Rule(f"{native}.{number}", native, rows, alias=True))
    )


def aliases(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """``rules`` as names that other programs have, beside those of diffusers."""
    return tuple(replace(rule, alias=True) for rule in rules)


def _rows(*starts_and_counts: tuple[tuple[Number, Number], tuple[Number, Number]]) -> tuple[FusedRows, ...]:
    return tuple(FusedRows(start, count) for start, count in starts_and_counts)


_THIRD, _HALF = Fraction(1, 3), Fraction(1, 2)

#: Queries, keys and values of the same size.
QKV = _rows(((0, 0), (_THIRD, 0)), ((_THIRD, 0), (_THIRD, 0)), ((2 * _THIRD, 0), (_THIRD, 0)))
#: The same with as many queries as inputs, but fewer keys and values.
GROUPED_QKV = _rows(((0, 0), (0, 1)), ((0, 1), (_HALF, -_HALF)), ((_HALF, _HALF), (_HALF, -_HALF)))
KV = _rows(((0, 0), (_HALF, 0)), ((_HALF, 0), (_HALF, 0)))
#: Queries, keys and values of as many rows as there are inputs, then a multilayer perceptron's.
QKV_MLP = _rows(((0, 0), (0, 1)), ((0, 1), (0, 1)), ((0, 2), (0, 1)), ((0, 3), (1, -3)))
#: The first three of those together.
QKV_OF_MLP = FusedRows((0, 0), (0, 3))
