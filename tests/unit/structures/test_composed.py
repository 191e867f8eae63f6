"""Structures around those of every sample: some rows, an enlarged weight, a weight in another order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from laws import every_target, made
from oracles import to_numpy
from samples import Target
from torch import Tensor

from lycoris_algos import ShapeMismatchError
from lycoris_algos.structures import (
    Dense,
    Enlarged,
    LayerOperation,
    LowRank,
    RowSlice,
    ScaledRows,
    Sum,
    apply_,
)


def close(got: Tensor, expected: np.ndarray, target: Target) -> None:
    allowed = 50 * target.case.tol64 * (1 + np.abs(expected).max(initial=0.0))
    assert np.abs(to_numpy(got) - expected).max(initial=0.0) <= allowed


@every_target
def test_a_slice_is_those_rows_of_the_change(target: Target) -> None:
    structure, matrix, expected = made(target)
    total, unit = matrix.shape[0], structure.row_unit or matrix.shape[0]
    for start, stop in {(0, total), (0, unit), (total - unit, total), (unit, total)} - {(total, total)}:
        count = stop - start
        own = RowSlice(structure, start, count, total)
        own.fits((count, *target.shape[1:]))
        with pytest.raises(ShapeMismatchError):
            own.fits((count + 1, *target.shape[1:]))
        assert own.size == (count, structure.size[1])
        rows = matrix[start:stop].clone()
        close(own.delta(rows if own.needs_weight else None), expected[start:stop], target)
        cut = count // unit // 2 * unit  # 0 where it cannot be cut
        for block in (slice(0, cut), slice(cut, count)) if cut else (slice(0, count),):
            own.add_rows_(rows[block], block.start, 0.7, rows[block])
        close(rows, to_numpy(matrix)[start:stop] + 0.7 * expected[start:stop], target)


@every_target
def test_an_enlarged_weight_is_changed_where_it_was_and_where_it_was_not(target: Target) -> None:
    structure, matrix, _ = made(target)
    enlarged = Enlarged(structure, target.shape)
    smaller = tuple(max(1, size - 1) for size in target.shape)
    corner = matrix.reshape(target.shape)[tuple(slice(size) for size in smaller)].clone()
    assert enlarged.new_shape(smaller) == target.shape
    assert (enlarged.size, enlarged.exact_rank) == (structure.size, structure.exact_rank)
    larger = torch.zeros(target.shape, dtype=torch.float64)
    larger[tuple(slice(size) for size in smaller)] = corner
    flat = larger.reshape(matrix.shape)
    wanted = flat + structure.delta(flat if structure.needs_weight else None)
    got = apply_(corner, [(enlarged, 1.0)])
    assert tuple(got.shape) == target.shape
    close(got.reshape(matrix.shape), to_numpy(wanted), target)
    with pytest.raises(ShapeMismatchError):
        enlarged.new_shape((target.shape[0] + 1, *target.shape[1:]))


@every_target
def test_a_weight_may_be_kept_in_another_order_than_it_was_trained_in(target: Target) -> None:
    structure, matrix, expected = made(target)

    def turned(weight: Tensor) -> Tensor:
        return weight.flip(0)

    kept = turned(matrix.reshape(target.shape)).clone()
    apply_(kept, [(structure, 0.7), (structure, 0.0)], transform=turned, inverse=turned)
    close(turned(kept).reshape(matrix.shape), to_numpy(matrix) + 0.7 * expected, target)
    if structure.needs_weight:
        with pytest.raises(TypeError, match="in the order it was trained in"):
            apply_(kept, [(structure, 0.7)], transform=turned)


@every_target
def test_the_terms_of_a_sum_all_see_the_weight_itself(target: Target) -> None:
    structure, matrix, expected = made(target)
    other = Dense(torch.randn(matrix.shape, dtype=torch.float64))
    for terms in ((structure, other), (other, structure)):
        both = Sum(terms, (0.5, -2.0) if terms[0] is structure else (-2.0, 0.5))
        wanted = 0.5 * expected - 2.0 * to_numpy(other.matrix)
        close(both.delta(matrix if both.needs_weight else None), wanted, target)
        rows = matrix.clone()
        both.add_rows_(rows, 0, 0.7, rows)
        close(rows, to_numpy(matrix) + 0.7 * wanted, target)
        assert both.row_unit == structure.row_unit
        assert both.needs_weight == structure.needs_weight
        assert both.size == matrix.shape


@every_target
def test_the_factors_of_a_sum_are_those_of_all_its_terms(target: Target) -> None:
    structure, matrix, expected = made(target)
    thin = LowRank(torch.randn(matrix.shape[0], 2).double(), torch.randn(2, matrix.shape[1]).double())
    both = Sum((structure, thin), (0.5, -2.0))
    own, factors = structure.exact_rank, both.factors(matrix if both.needs_weight else None)
    assert both.exact_rank == (None if own is None else own + 2)
    assert (factors is None) == (own is None)
    if factors is not None:
        close(factors[0] @ factors[1], 0.5 * expected - 2.0 * to_numpy(thin.delta()), target)
    assert Sum((structure, Dense(matrix))).factors(matrix) is None


@every_target
def test_scaled_rows_are_those_of_the_change_times_a_number_each(target: Target) -> None:
    structure, matrix, expected = made(target)
    vector = torch.linspace(-1, 2, matrix.shape[0], dtype=torch.float64)
    scaled = ScaledRows(structure, vector)
    wanted = expected * to_numpy(vector)[:, None]
    given = matrix if scaled.needs_weight else None
    assert scaled.size == (matrix.shape[0], structure.size[1])
    assert (scaled.exact_rank, scaled.work) == (structure.exact_rank, structure.work)
    close(scaled.delta(given), wanted, target)
    factors, reach = scaled.factors(given), scaled.reach()
    if factors is not None:
        close(factors[0] @ factors[1], wanted, target)
    assert reach is None or reach >= np.abs(wanted).max() * (1 - 1e-9)
    rows = matrix.clone()
    scaled.add_rows_(rows, 0, 0.7, rows)
    close(rows, to_numpy(matrix) + 0.7 * wanted, target)
    if len(target.shape) != 2:
        return
    x = torch.randn(3, matrix.shape[1], dtype=torch.float64)
    operation = LayerOperation(matrix)
    close(scaled.forward(x, operation), to_numpy(x) @ wanted.T, target)
    known = LayerOperation(matrix, known=(x, operation(x)))
    close(scaled.forward(x, known), to_numpy(x) @ wanted.T, target)
