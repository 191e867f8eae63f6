"""Which form and size each layer is stored in, where layers are compared: a size budget, and ``auto``.

Every layer is quoted: what each form would keep of its change, at how many bytes. Bytes then go where they
keep most (deltas/budget.py). ``auto`` chooses among the forms of all algorithms, for the size that is asked
for, for the share of energy, or in as many bytes as a LoRA takes by the chosen rule. What each algorithm
alone would keep in the same bytes is compared, and where one alone keeps more, it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..adapters import FitRequest, Price, fittable
from ..deltas import Offer, allocate, kept_energy, reach, total_size
from ..ops.ranks import RankKind, choose
from ..text import Brief
from .forms import asked, fits
from .options import AUTO, DORA, FULL, LOHA, LOKR, LORA, TUCKER
from .plan import TITLES, ExtractPlan, ParameterPlan

# Bytes of a tensor's entry in a file's header, besides name, shape and offsets; those of the metadata.
_ENTRY, _METADATA = 48, 2048
# Bytes of alpha, which is stored as float32, and digits of an offset.
_ALPHA, _DIGITS = 4, 9
# The keys that a form is stored under.
_KEYS: dict[str, tuple[str, ...]] = {
    LORA: ("lora_up.weight", "lora_down.weight", "alpha"),
    TUCKER: ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha"),
    LOKR: ("lokr_w1", "lokr_w2", "alpha"),
    LOHA: ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"),
    DORA: ("lora_up.weight", "lora_down.weight", "alpha", "dora_scale"),
    FULL: ("diff_b",),
}
_LOKR_LOW_RANK = ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha")
# Ranks that are priced: of a LoRA that has its even share of a budget, so many times as many, and these.
_TIMES, _LEAST = 4, 48


@dataclass(frozen=True)
class Choice(Brief):
    """What a layer is stored as, and in which size."""

    form: str
    price: Price


@dataclass(frozen=True, eq=False)
class Quote(Brief):
    """One parameter that changed: its energy, its offers by form, and the bytes of a LoRA by the rule."""

    energy: float
    offers: Mapping[str, tuple[Offer, ...]]
    lora_size: int

    def of(self, algorithm: str) -> tuple[Offer, ...]:
        """What ``algorithm`` offers; each may also store a layer whole, which has no better form then."""
        if algorithm == AUTO:
            return tuple(offer for own in self.offers.values() for offer in own)
        own = self.offers.get(algorithm, ()) or self.offers.get(LORA, ())
        return (*own, *self.offers[FULL])


@dataclass(frozen=True, eq=False)
class Comparison(Brief):
    """The shares of energy that algorithms keep in the same ``size``, in bytes."""

    size: int
    shares: Mapping[str, float]

    def lines(self) -> list[str]:
        """A small table."""
        return [
            f"{'in the same ' + f'{self.size / 1e6:.2f} MB':<24} keeps",
            *(f"  {TITLES.get(name, name):<22} {100 * share:.3f} %" for name, share in self.shares.items()),
        ]


def priced_ranks(plan: ExtractPlan, parameter: ParameterPlan) -> int:
    """How many ranks of ``parameter`` are worth a price; 0 for all."""
    rule = plan.rule(parameter)
    if rule.kind is RankKind.FIXED:
        return max(_LEAST, math.ceil(1.5 * rule.value))
    if rule.kind is not RankKind.BUDGET:
        return 0
    per_rank = sum(sum(p.size) for p in plan.parameters if not p.is_vector) * plan.options.dtype.itemsize
    return max(_LEAST, math.ceil(_TIMES * rule.value * 1e6 / max(1, per_rank)))


def quote(plan: ExtractPlan, parameter: ParameterPlan, request: FitRequest) -> Quote:
    """What can be had for the change of ``request``, that of ``parameter``."""
    offers: dict[str, tuple[Offer, ...]] = {}
    for form in (*plan.forms(parameter), FULL):
        prices = fits(form).prices(asked(request, form))
        if not prices and plan.options.algorithm == form:
            prices = _estimated(request, form)
        offers[form] = tuple(
            Offer(stored_size(plan, parameter, form, price), price.kept, Choice(form, price))
            for price in prices
            if form == FULL or price.numbers < math.prod(parameter.size)
        )
    rule = plan.rule(parameter)
    lora_size = 0
    if not parameter.is_vector and rule.kind is not RankKind.BUDGET:
        rank = choose(request.values, rule, request.size, request.energy)
        numbers = min(rank * sum(parameter.size), math.prod(parameter.size))
        lora_size = stored_size(plan, parameter, LORA, Price(numbers, 0.0))
    return Quote(request.energy, offers, lora_size)


def stored_size(plan: ExtractPlan, parameter: ParameterPlan, form: str, price: Price) -> int:
    """Bytes in a file of ``parameter`` as ``form`` at ``price``, rather too many than too few."""
    keys = _LOKR_LOW_RANK if form == LOKR and price.sizes and price.sizes[-1] else _KEYS[form]
    shape = len(",".join(map(str, parameter.shape))) + 2
    entry = _ENTRY + len(parameter.layer.encode()) + 1 + shape + 2 * _DIGITS
    header = sum(entry + len(key) for key in keys)
    width = plan.options.dtype.itemsize
    # DoRA's lengths are kept in float32.
    lengths = max(0, 4 - width) * parameter.size[0] if form == DORA else 0
    return price.numbers * width + lengths + header + _ALPHA


def choices(plan: ExtractPlan, quotes: Mapping[str, Quote]) -> tuple[dict[str, Choice], Comparison | None]:
    """(what each parameter, by its name, is stored as; how algorithms compare) from the ``quotes`` of all.

    Parameters that are not in the answer are left out. Raises BadValueError for a budget that is too small.
    """
    vectors = {p.name for p in plan.parameters if p.is_vector and p.name in quotes}
    fixed = _METADATA + sum(quotes[name].offers[FULL][0].size for name in vectors)
    others = {name: own for name, own in quotes.items() if name not in vectors}
    algorithm = plan.options.algorithm
    chosen = _chosen(plan, others, algorithm, fixed)
    comparison = None
    if algorithm == AUTO:
        size = _limit(plan, others, chosen, fixed)
        ways = {AUTO: chosen}
        for form in sorted({form for own in others.values() for form in own.offers} - {FULL}):
            alone = {name: own.of(form) for name, own in others.items()}
            if size - fixed >= min((o.size for own in alone.values() for o in own), default=0):
                ways[form] = allocate(alone, size, fixed)
        best = max(ways, key=lambda form: kept_energy(ways[form]))
        chosen = ways[AUTO] if kept_energy(ways[AUTO]) >= kept_energy(ways[best]) else ways[best]
        ways[AUTO] = chosen
        total = sum(own.energy for own in others.values()) or 1.0
        comparison = Comparison(size, {form: kept_energy(way) / total for form, way in ways.items()})
    stored = {name: offer.what for name, offer in chosen.items()}
    stored |= {name: quotes[name].offers[FULL][0].what for name in vectors}
    return {name: what for name, what in stored.items() if isinstance(what, Choice)}, comparison


def _chosen(plan: ExtractPlan, quotes: Mapping[str, Quote], algorithm: str, fixed: int) -> dict[str, Offer]:
    offers = {name: own.of(algorithm) for name, own in quotes.items()}
    rule = plan.options.linear
    if rule.kind is RankKind.BUDGET:
        return allocate(offers, int(rule.value * 1e6), fixed)
    if rule.kind is RankKind.ENERGY:
        rules = {p.name: plan.rule(p) for p in plan.parameters if p.name in quotes}
        return reach(offers, sum(rules[name].value * own.energy for name, own in quotes.items()))
    return allocate(offers, fixed + sum(own.lora_size for own in quotes.values()), fixed)


def _limit(plan: ExtractPlan, quotes: Mapping[str, Quote], chosen: Mapping[str, Offer], fixed: int) -> int:
    """The bytes in which algorithms are compared."""
    rule = plan.options.linear
    if rule.kind is RankKind.BUDGET:
        return int(rule.value * 1e6)
    if rule.kind is RankKind.ENERGY:
        return fixed + total_size(chosen)
    return fixed + sum(own.lora_size for own in quotes.values())


def _estimated(request: FitRequest, form: str) -> list[Price]:
    """Prices of a form that is asked for although it does not suit the change: as what a LoRA keeps."""
    rows, columns = request.size
    per_rank = rows + columns if form == DORA else fittable()[form].numbers_per_rank(rows, columns)
    times = per_rank // (rows + columns)
    kept = request.values.double().square().cumsum(0)[times - 1 :: times].tolist()
    extra = rows if form == DORA else 0
    return [Price(rank * per_rank + extra, energy, (rank,)) for rank, energy in enumerate(kept, 1)]
