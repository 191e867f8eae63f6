"""How the files of a stack meet: pair by pair and all together, on every layer, added up by block.

What is added up are inner products and squared norms, so that the cosine of a block is that of all its
changes as one long vector. Shares of spaces and signs are averages, layers counting by the product of the
norms of the two changes.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..deltas import alignment, opposed
from ..structures import Structure
from ..text import Brief
from .values import Joint, Meeting, Pair, in_order

_Two = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Change(Brief):
    """What one file does to a weight, and by which multiplier, which is not 0."""

    file: int
    structure: Structure
    multiplier: float


@dataclass(frozen=True)
class Compared(Brief):
    """The changes of one weight: {files: m·m'·⟨ΔW, ΔW'⟩}, and of each two (outputs, inputs, conflict)."""

    products: dict[_Two, float]
    shares: dict[_Two, tuple[float, float, float | None]]


def compare(changes: Sequence[Change], weight: Tensor | None) -> Compared:
    """All ``changes`` of one weight (o, c), which is given where one depends on it."""
    products = {(c.file, c.file): (c.multiplier * c.structure.norm(weight)) ** 2 for c in changes}
    shares: dict[_Two, tuple[float, float, float | None]] = {}
    for one, other in itertools.combinations(changes, 2):
        both, factor = (one.file, other.file), one.multiplier * other.multiplier
        aligned = alignment(one.structure, other.structure, weight)
        conflict = opposed(one.structure, other.structure, weight)
        if conflict is not None and factor < 0.0:
            conflict = 1.0 - conflict
        products[both] = factor * aligned.inner
        shares[both] = (aligned.outputs, aligned.inputs, conflict)
    return Compared(products, shares)


@dataclass
class _Sums(Brief):
    """Of two files, over layers that both change."""

    layers: int = 0
    inner: float = 0.0
    first: float = 0.0
    second: float = 0.0
    weight: float = 0.0
    outputs: float = 0.0
    inputs: float = 0.0
    conflict: float = 0.0

    def add(self, both: _Two, compared: Compared) -> None:
        first, second = (compared.products[file, file] for file in both)
        outputs, inputs, conflict = compared.shares[both]
        weight = math.sqrt(first * second)
        self.layers += 1
        self.inner += compared.products[both]
        self.first += first
        self.second += second
        self.weight += weight
        self.outputs += weight * outputs
        self.inputs += weight * inputs
        self.conflict += weight * (conflict or 0.0)

    def meeting(self) -> Meeting:
        lengths = math.sqrt(self.first * self.second)
        if not lengths or not self.weight:
            return Meeting(self.layers, None, None, None, None)
        shares = (value / self.weight for value in (self.outputs, self.inputs, self.conflict))
        return Meeting(self.layers, self.inner / lengths, *shares)


@dataclass
class Ledger(Brief):
    """The sums over layers, by block; "" is the whole model."""

    pairs: dict[_Two, dict[str, _Sums]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(_Sums))
    )
    products: dict[str, dict[_Two, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )

    def enter(self, block: str, compared: Compared) -> None:
        """Adds one layer of ``block``."""
        for name in (block, ""):
            for both, product in compared.products.items():
                self.products[name][both] += product
            for both in compared.shares:
                self.pairs[both][name].add(both, compared)

    def balance(self) -> tuple[tuple[Pair, ...], dict[str, Joint]]:
        """(every two files that meet, {block: all files together}); "" is the whole model."""
        pairs = [
            Pair(
                *both, sums[""].meeting(), {block: sums[block].meeting() for block in in_order(sums) if block}
            )
            for both, sums in sorted(self.pairs.items())
        ]
        return tuple(pairs), {block: _joint(self.products[block]) for block in in_order(self.products)}


def _joint(products: dict[_Two, float]) -> Joint:
    total = sum(value if one == other else 2 * value for (one, other), value in products.items())
    apart = sum(math.sqrt(value) for (one, other), value in products.items() if one == other)
    return Joint(math.sqrt(max(0.0, total)), apart)
