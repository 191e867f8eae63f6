"""Shares out bytes among layers: each is stored in the size that keeps most of all changes together.

Every layer has offers: so many bytes keep so much of its energy (ΣD²). Going along the upper hull of each
layer's offers, always the step next that keeps most per byte, is optimal for the energy of everything
together, up to the last step that does not fit any more (Everett's Lagrange multipliers). What is left over
then is filled with whatever still fits, so that no layer has an offer that would.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import BadValueError
from ..text import Brief


@dataclass(frozen=True)
class Offer(Brief):
    """A size in which a layer may be stored: its bytes, the energy it keeps, and what it is."""

    size: int
    kept: float
    what: object = None


def offers_of_ranks(values: Tensor, bytes_per_rank: int, overhead: int) -> list[Offer]:
    """Ranks 1, 2 … of a layer with these singular values (k,); ``what`` is the number of ranks."""
    energies = values.double().square().cumsum(0).tolist()
    return [Offer(overhead + n * bytes_per_rank, kept, n) for n, kept in enumerate(energies, 1)]


def allocate(offers: Mapping[str, Sequence[Offer]], budget: int, fixed: int = 0) -> dict[str, Offer]:
    """The offer of each layer so that all bytes stay within ``budget`` (``fixed`` of them are spent already).

    A layer may get none. Raises BadValueError if not even the smallest offer fits.
    """
    left = budget - fixed
    chosen: dict[str, Offer] = {}
    closed: set[str] = set()
    for name, offer in _steps(offers):
        cost = offer.size - (chosen[name].size if name in chosen else 0)
        if name in closed:
            continue
        if cost > left:
            closed.add(name)
            continue
        chosen[name] = offer
        left -= cost
    _fill(offers, chosen, left)
    if offers and not chosen:
        smallest = fixed + min(offer.size for own in offers.values() for offer in own)
        raise BadValueError(
            f"a budget of {budget / 1e6:g} MB is too small: norms, biases and one rank of one layer take "
            f"{math.ceil(smallest / 1e4) / 100:g} MB"
        )
    return chosen


def reach(offers: Mapping[str, Sequence[Offer]], energy: float) -> dict[str, Offer]:
    """The offer of each layer so that together they keep ``energy``, in as few bytes as the hulls tell."""
    chosen: dict[str, Offer] = {}
    kept = 0.0
    for name, offer in _steps(offers):
        if kept >= energy * (1 - 1e-9):
            break
        kept += offer.kept - (chosen[name].kept if name in chosen else 0.0)
        chosen[name] = offer
    return chosen


def _steps(offers: Mapping[str, Sequence[Offer]]) -> Iterator[tuple[str, Offer]]:
    """All steps along the hulls of all layers, those that keep most per byte first."""
    heap: list[tuple[float, int, int]] = []
    names = list(offers)
    hulls = [_hull(offers[name]) for name in names]
    for index, hull in enumerate(hulls):
        if hull:
            heapq.heappush(heap, (-hull[0].kept / hull[0].size, index, 0))
    while heap:
        _, index, place = heapq.heappop(heap)
        hull = hulls[index]
        yield names[index], hull[place]
        if place + 1 < len(hull):
            heapq.heappush(heap, (-_slope(hull[place], hull[place + 1]), index, place + 1))


def _hull(own: Sequence[Offer]) -> list[Offer]:
    """The offers on the upper concave hull from (0, 0) on, by size; those that keep nothing are left out."""
    hull: list[Offer] = []
    nothing = Offer(0, 0.0)
    for offer in _improving([offer for offer in own if offer.kept > 0.0]):
        while hull and _slope(hull[-1], offer) >= _slope(hull[-2] if len(hull) > 1 else nothing, hull[-1]):
            hull.pop()
        hull.append(offer)
    return hull


def _slope(first: Offer, second: Offer) -> float:
    return (second.kept - first.kept) / max(1, second.size - first.size)


def _fill(offers: Mapping[str, Sequence[Offer]], chosen: dict[str, Offer], left: int) -> None:
    """Puts better offers in the place of those ``chosen`` as long as one fits into ``left`` bytes more."""
    nothing = Offer(0, 0.0)
    ordered = {name: _improving(own) for name, own in offers.items()}
    sizes = {name: [offer.size for offer in own] for name, own in ordered.items()}
    energies = {name: [offer.kept for offer in own] for name, own in ordered.items()}
    while True:
        best: tuple[float, str, Offer] | None = None
        for name, own in ordered.items():
            now = chosen.get(name, nothing)
            first = bisect_right(energies[name], now.kept)
            for offer in own[first : bisect_right(sizes[name], now.size + left)]:
                gain = (offer.kept - now.kept) / max(1, offer.size - now.size)
                if best is None or gain > best[0]:
                    best = gain, name, offer
        if best is None:
            return
        _, name, offer = best
        left -= offer.size - chosen.get(name, nothing).size
        chosen[name] = offer


def _improving(own: Sequence[Offer]) -> list[Offer]:
    """The offers that keep more than every smaller one, by size."""
    better: list[Offer] = []
    for offer in sorted(own, key=lambda offer: (offer.size, -offer.kept)):
        if not better or offer.kept > better[-1].kept:
            better.append(offer)
    return better


def kept_energy(chosen: Mapping[str, Offer]) -> float:
    """ΣD² that all of ``chosen`` keep."""
    return math.fsum(offer.kept for offer in chosen.values())


def total_size(chosen: Mapping[str, Offer]) -> int:
    """The bytes of all of ``chosen``."""
    return sum(offer.size for offer in chosen.values())
