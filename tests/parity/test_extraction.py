"""Ranks and factors of extraction against lycoris-lora's own ``extract_linear`` and ``extract_conv``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lycoris_algos import LayerAdapter
from lycoris_algos.adapters import FitRequest, component
from lycoris_algos.extract import rule_for
from lycoris_algos.ops.ranks import RankRule
from lycoris_algos.structures import Dense

SHAPES = ((96, 64), (64, 96), (60, 20, 3, 3), (300, 320))


def with_spectrum(shape: tuple[int, ...], values: Tensor) -> Tensor:
    columns = torch.Size(shape[1:]).numel()
    u = torch.linalg.qr(torch.randn(shape[0], len(values), dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64))[0]
    return ((u * values.double()) @ v.T).reshape(shape).float()


def theirs(weight: Tensor, mode: str, value: float) -> tuple[int | None, Tensor]:
    """(rank, or None where it is stored whole; the change that is stored) of lycoris-lora."""
    from lycoris.utils import extract_conv, extract_linear

    extract: Any = extract_conv if weight.dim() == 4 else extract_linear
    got, kind = extract(weight, mode, value)
    if kind == "full":
        return None, got
    down, up, _ = got
    return down.shape[0], (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def ours(weight: Tensor, rule: RankRule) -> tuple[int, Tensor]:
    shape = tuple(weight.shape)
    fitted = component("lora").fit(FitRequest(Dense(weight.flatten(1)), shape, rule))  # type: ignore[attr-defined]
    return fitted.rank, LayerAdapter(algorithm=fitted.stored).delta(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("mode", "value"),
    [("fixed", 5), ("threshold", 0.3), ("ratio", 0.2), ("ratio", 0.05), ("quantile", 0.5), ("quantile", 0.8)],
)
def test_as_many_ranks_as_lycoris_keeps(shape: tuple[int, ...], mode: str, value: float) -> None:
    count = min(shape[0], torch.Size(shape[1:]).numel())
    weight = with_spectrum(shape, 2 * torch.logspace(0, -5, count))
    rank, change = ours(weight, rule_for(mode, value))
    # LyCORIS' quantile keeps one rank fewer than reach it.
    missing = 1 if mode == "quantile" else 0
    their_rank, their_change = theirs(weight, mode, value)
    assert their_rank is not None
    assert rank == their_rank + missing
    if not missing:
        lost, their_loss = float((weight - change).norm()), float((weight - their_change).norm())
        assert lost <= 1.005 * their_loss


@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 10), min_size=24, max_size=24), st.floats(0.05, 0.95))
def test_ranks_of_any_spectrum(drawn: list[float], share: float) -> None:
    values = torch.tensor(sorted(drawn, reverse=True))
    weight = with_spectrum((80, 24), values)
    exact = torch.linalg.svdvals(weight.double())
    for mode, value, decides in (
        ("threshold", share * 10, exact),
        ("ratio", share, exact / exact[0]),
        ("quantile", share, exact.cumsum(0) / exact.sum()),
    ):
        if float((decides - value).abs().min()) < 1e-4:
            continue  # rounding decides
        their_rank, _ = theirs(weight, mode, value)
        if their_rank is not None:
            rank, _ = ours(weight, rule_for(mode, value))
            assert rank == min(24, max(1, their_rank + (mode == "quantile" and bool(decides[0] < value))))
