"""T-LoRA: whether a file started from the largest singular values of this weight shows in its P."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lycoris_algos import BadValueError, LayerAdapter, NeedsBaseError, ShapeMismatchError

SHAPE, RANK = (12, 9), 3


def weight() -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64)


def started(base: Tensor, first: int, outside: int = 0) -> LayerAdapter:
    """One that started from the singular values from ``first`` on, ``outside`` of its P turned elsewhere."""
    u, s, vh = torch.linalg.svd(base, full_matrices=False)
    own = list(range(first, first + RANK))
    p = u[:, own].clone()
    p[:, RANK - outside :] = u[:, -outside or len(u) :]
    tensors = {"p_layer.weight": p, "q_layer.weight": vh[own], "lambda_layer": s[own]}
    return LayerAdapter.from_tensors({suffix: value.contiguous() for suffix, value in tensors.items()})


def test_untrained_it_changes_nothing() -> None:
    base = weight()
    assert float(started(base, 0).delta(base).abs().max()) < 1e-12


@pytest.mark.parametrize(("outside", "accepted"), [(1, True), (2, False), (3, False)])
def test_most_of_the_space_must_be_that_of_the_largest(outside: int, accepted: bool) -> None:
    base = weight()
    layer = started(base, 0, outside)  # 2, 1 or 0 of 3 directions are the same
    if accepted:
        assert float(layer.delta(base).abs().max()) > 0.1
        return
    with pytest.raises(BadValueError, match=rf"shares {(3 - outside) / 3:.0%} of their space"):
        layer.delta(base)


def test_half_of_the_space_is_enough() -> None:
    base = weight()
    u, s, vh = torch.linalg.svd(base, full_matrices=False)
    for share, accepted in ((0.51, True), (0.49, False)):
        p = share**0.5 * u[:, :1] + (1 - share) ** 0.5 * u[:, 5:6]
        tensors = {"p_layer.weight": p, "q_layer.weight": vh[:1], "lambda_layer": s[:1]}
        layer = LayerAdapter.from_tensors({name: value.contiguous() for name, value in tensors.items()})
        if accepted:
            layer.delta(base)
        else:
            with pytest.raises(BadValueError, match="49%"):
                layer.delta(base)


@pytest.mark.parametrize("first", [3, 6])
def test_one_that_started_from_the_middle_or_the_smallest_is_refused(first: int) -> None:
    base = weight()
    with pytest.raises(BadValueError, match="not started from the largest singular values"):
        started(base, first).delta(base)


def test_it_needs_the_weight_that_it_started_from() -> None:
    layer = started(weight(), 0)
    with pytest.raises(NeedsBaseError, match="weight of the whole layer"):
        layer.structure(SHAPE)
    with pytest.raises(ShapeMismatchError, match=r"base weight of \(12, 8\)"):
        layer.structure(SHAPE, base=lambda: torch.zeros(12, 8))
