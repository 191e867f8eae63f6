"""Bytes shared out among layers: within the budget, nothing left that would fit, and as good as can be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos import BadValueError
from lycoris_algos.deltas import Offer, allocate, kept_energy, offers_of_ranks, reach, total_size

#: Layers with a few offers each: (bytes, energy kept).
layers = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 100)), min_size=1, max_size=5),
    min_size=1,
).map(lambda drawn: {name: [Offer(*pair) for pair in own] for name, own in drawn.items()})


def best(offers: dict[str, list[Offer]], budget: int) -> float:
    """By trying everything."""
    choices = [[None, *own] for own in offers.values()]
    fitting = (
        [offer for offer in chosen if offer is not None]
        for chosen in itertools.product(*choices)
        if sum(offer.size for offer in chosen if offer is not None) <= budget
    )
    return max(sum(offer.kept for offer in chosen) for chosen in fitting)


@given(layers, st.integers(1, 200))
def test_the_budget_holds_and_nothing_better_fits(offers: dict[str, list[Offer]], budget: int) -> None:
    smallest = min(offer.size for own in offers.values() for offer in own)
    if smallest > budget:
        with pytest.raises(BadValueError, match="too small"):
            allocate(offers, budget)
        return
    chosen = allocate(offers, budget)
    left = budget - total_size(chosen)
    assert left >= 0
    for name, own in offers.items():
        now = chosen.get(name, Offer(0, 0.0))
        assert not [o for o in own if o.kept > now.kept and o.size - now.size <= left]
    # No further from the best than one step of one layer.
    step = max(offer.kept for own in offers.values() for offer in own)
    assert best(offers, budget) - step - 1e-6 <= kept_energy(chosen) <= best(offers, budget) + 1e-6


@given(layers, st.floats(0.01, 1.0))
def test_an_energy_is_reached(offers: dict[str, list[Offer]], share: float) -> None:
    most = sum(max(offer.kept for offer in own) for own in offers.values())
    chosen = reach(offers, share * most)
    assert kept_energy(chosen) >= share * most * (1 - 1e-6)
    # What a budget of the same bytes keeps is no less.
    again = allocate(offers, total_size(chosen))
    assert kept_energy(again) >= kept_energy(chosen) - 1e-6


def test_ranks_as_offers() -> None:
    import torch

    offers = offers_of_ranks(torch.tensor([3.0, 2.0, 1.0]), 10, 4)
    assert [(o.size, o.kept, o.what) for o in offers] == [(14, 9.0, 1), (24, 13.0, 2), (34, 14.0, 3)]
    assert allocate({"a": offers}, 30)["a"].what == 2
    assert allocate({"a": offers}, 30 + 50, 50)["a"].what == 2
    with pytest.raises(BadValueError, match=r"0\.0\d MB"):
        allocate({"a": offers}, 20, 10)
    assert allocate({}, 5) == {}
