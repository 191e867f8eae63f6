"""Weights that a change takes beyond their number type: found exactly, and only where they are looked at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lycoris_algos import LayerAdapter
from lycoris_algos.structures import Structure, overflow

SHAPE = (24, 16)
NARROW = [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


def lora(peak: float) -> Structure:
    """A change whose largest element is ``peak``."""
    up, down = torch.randn(24, 4), torch.randn(4, 16)
    up *= peak / (up @ down).abs().max()
    return LayerAdapter.from_tensors({"lora_up.weight": up, "lora_down.weight": down}).structure(SHAPE)


def no_weight() -> Tensor:
    raise AssertionError("the weight is fetched although its change is small")


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("share", [0.9, 1.1, 50.0])
def test_it_is_what_rounding_loses(dtype: torch.dtype, share: float) -> None:
    largest = torch.finfo(dtype).max
    change = lora(2 * share * largest)
    weight = torch.randn(SHAPE)
    exact = weight + 0.5 * change.delta()
    reached = overflow([(change, 0.5)], dtype, weight.clone)
    if share < 1:
        assert exact.abs().max() < largest
        assert reached is None
    else:
        assert reached == pytest.approx(float(exact.abs().max()), rel=1e-4)


def test_entries_count_together() -> None:
    entries = [(lora(40000.0), 1.0)] * 2
    assert overflow(entries[:1], torch.float16, lambda: torch.zeros(SHAPE)) is None
    assert overflow(entries, torch.float16, lambda: torch.zeros(SHAPE)) == pytest.approx(80000.0, rel=1e-3)
    assert overflow([entries[0], (entries[0][0], -1.0)], torch.float16, lambda: torch.zeros(SHAPE)) is None


def test_a_weight_is_not_even_fetched_for_usual_changes() -> None:
    assert overflow([(lora(10.0), 1.0)], torch.float8_e4m3fn, no_weight) is None
    assert overflow([(lora(1e6), 0.0)], torch.float16, no_weight) is None


def test_nothing_is_said_of_a_change_that_only_the_weight_tells() -> None:
    replaced = LayerAdapter.from_tensors({"set_weight": torch.full(SHAPE, 1e6)}).structure(SHAPE)
    assert overflow([(replaced, 1.0)], torch.float16, no_weight) is None
