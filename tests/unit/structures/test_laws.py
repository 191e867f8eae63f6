"""Laws that hold for the structure of every sample: each answer against the dense change, in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from laws import adapter, every_case, every_target, made
from oracles import same_bits, to_numpy
from samples import Case, Target
from torch import Tensor

from lycoris_algos import LayerAdapter, NeedsBaseError, ShapeMismatchError
from lycoris_algos.structures import LayerOperation, Structure, apply_

CPU = torch.device("cpu")


def given(structure: Structure, matrix: Tensor) -> Tensor | None:
    return matrix if structure.needs_weight else None


def close(got: object, expected: object, case: Case, factor: float = 1.0) -> None:
    expected = np.asarray(expected)
    allowed = factor * (case.tol64 * np.abs(expected).max(initial=0.0) + 1e-300)
    assert np.abs(np.asarray(got) - expected).max(initial=0.0) <= allowed


# ---- what is said without computing -------------------------------------------------------------------


@every_target
def test_what_depends_on_the_weight_is_said_by_adapter_and_structure_alike(target: Target) -> None:
    layer = adapter(target)
    structure, _, _ = made(target)
    if structure.needs_weight != layer.needs_weight:  # then it is told the weight that it starts from
        assert layer.needs_weight
        with pytest.raises(NeedsBaseError):
            layer.structure(target.shape)
    else:
        layer.structure(target.shape)


@every_target
def test_the_size_is_the_weights_and_open_only_where_any_will_do(target: Target) -> None:
    structure, matrix, _ = made(target)
    structure.fits(target.shape)
    for axis, (own, found) in enumerate(zip(structure.size, matrix.shape, strict=True)):
        assert own in (None, found)
        if own is None:
            twice = torch.cat((matrix, matrix), dim=axis)
            assert structure.delta(twice).shape == twice.shape
    if not structure.needs_weight:
        assert structure.size == matrix.shape


@every_target
def test_the_exact_rank_is_the_rank_of_the_change(target: Target) -> None:
    layer = adapter(target)
    structure, matrix, expected = made(target)
    singular = np.linalg.svd(expected, compute_uv=False)
    found = int((singular > 1e-9 * singular[0]).sum())
    assert (layer.exact_rank is None) == (structure.exact_rank is None)
    for said in (layer.exact_rank, structure.exact_rank):
        assert said is None or not found or min(said, *matrix.shape) == found  # 0 where alpha is
    factors = structure.factors(given(structure, matrix))
    if factors is not None:
        assert structure.exact_rank is not None
        assert found <= factors[0].shape[1] == factors[1].shape[0] <= structure.exact_rank


@every_target
def test_the_weight_matters_exactly_where_it_is_said_to(target: Target) -> None:
    structure, matrix, _ = made(target)
    if not structure.needs_weight:
        assert same_bits(structure.delta(), structure.delta(matrix))
        return
    assert not torch.equal(structure.delta(matrix), structure.delta(matrix * 1.5 + 1))
    with pytest.raises((TypeError, AttributeError)):
        structure.delta()


@every_target
def test_a_matrix_of_another_size_is_refused(target: Target) -> None:
    structure, _, _ = made(target)
    rows, columns = structure.size
    if rows is not None:
        with pytest.raises(ShapeMismatchError, match=r"\d"):
            structure.fits((target.shape[0] + 1, *target.shape[1:]))
    if columns is not None and len(target.shape) > 1:
        with pytest.raises(ShapeMismatchError, match=r"\d"):
            structure.fits((target.shape[0], target.shape[1] + 1, *target.shape[2:]))


@every_target
def test_no_element_is_beyond_the_reach(target: Target) -> None:
    structure, _, expected = made(target)
    reach = structure.reach()
    if not {"lora", "loha", "lokr", "full", "norm", "sparse"}.isdisjoint(target.algos):
        assert (reach is None) == structure.needs_weight
    if reach is not None:
        assert not structure.needs_weight
        assert np.abs(expected).max() <= reach * (1 + 1e-12)
        assert structure.cast(CPU, torch.float32).reach() == pytest.approx(reach, rel=1e-5)


# ---- the change ---------------------------------------------------------------------------------------


@every_target
def test_the_delta_is_the_formula(target: Target) -> None:
    structure, matrix, expected = made(target)
    close(to_numpy(structure.delta(given(structure, matrix))), expected, target.case)


@every_target
def test_rows_are_added_to_any_piece_that_keeps_units_together(target: Target) -> None:
    structure, matrix, expected = made(target)
    unit, count = structure.row_unit, matrix.shape[0]
    cuts = [0, count] if not unit or unit == count else [0, unit, count]
    for start, stop in itertools.pairwise(cuts):
        close(
            to_numpy(structure.rows(start, stop, given(structure, matrix))), expected[start:stop], target.case
        )
        for base_apart in (False, True):
            rows = matrix[start:stop].clone()
            base = matrix[start:stop].clone() if base_apart else rows
            structure.add_rows_(rows, start, -0.7, base)
            wanted = to_numpy(matrix)[start:stop] - 0.7 * expected[start:stop]
            scale = np.abs(wanted).max() + np.abs(expected).max()
            assert np.abs(to_numpy(rows) - wanted).max() <= 20 * target.case.tol64 * scale


@every_target
def test_rows_depend_on_no_rows_outside_their_unit(target: Target) -> None:
    structure, matrix, _ = made(target)
    unit, count = structure.row_unit, matrix.shape[0]
    assert unit == 1 or structure.needs_weight
    if not structure.needs_weight or not unit:
        return
    delta = structure.delta(matrix)
    for start in range(0, count, unit):
        own = slice(start, start + unit)
        other = matrix * 1.5 + 1.0
        other[own] = matrix[own]
        assert torch.allclose(structure.delta(other)[own], delta[own], rtol=1e-12, atol=1e-13)


# ---- its algebra --------------------------------------------------------------------------------------


@every_target
def test_factors_are_the_delta(target: Target) -> None:
    structure, matrix, expected = made(target)
    factors = structure.factors(given(structure, matrix))
    assert (factors is None) == (structure.exact_rank is None)
    if factors is not None:
        close(to_numpy(factors[0] @ factors[1]), expected, target.case, 20)
        paying = structure.paying_factors(given(structure, matrix))
        smaller = factors[0].shape[1] * sum(matrix.shape) < matrix.numel()
        assert paying is None or paying[0].numel() + paying[1].numel() < matrix.numel()
        assert paying is not None or not smaller or structure.exact_rank != factors[0].shape[1]


@every_target
def test_norm_and_spectrum_are_those_of_the_delta(target: Target) -> None:
    structure, matrix, expected = made(target)
    weight = given(structure, matrix)
    singular = np.linalg.svd(expected, compute_uv=False)
    assert structure.norm(weight) == pytest.approx(math.sqrt((singular**2).sum()), rel=1e-9)
    got = to_numpy(structure.spectrum(weight))
    assert (got[:-1] >= got[1:]).all()
    padded = np.zeros(max(len(got), len(singular)))
    padded[: len(singular)] = singular
    assert np.abs(got - padded[: len(got)]).max() <= 2e-7 * singular[0]
    assert padded[len(got) :].max(initial=0.0) <= 2e-7 * singular[0]


@every_target
def test_inner_products_with_every_form_of_another_change(target: Target) -> None:
    from lycoris_algos.structures import Dense, LowRank, Sum

    structure, matrix, expected = made(target)
    weight = given(structure, matrix)
    generator = torch.Generator().manual_seed(5)
    up = torch.randn((matrix.shape[0], 1), generator=generator, dtype=torch.float64)
    down = torch.randn((1, matrix.shape[1]), generator=generator, dtype=torch.float64)
    thin = LowRank(up, down, 0.5)
    for other in (thin, Dense(thin.delta()), Sum((thin, structure), (2.0, -1.0))):
        dense = to_numpy(other.delta(weight))
        wanted = float((expected * dense).sum())
        bound = 1e-10 * np.linalg.norm(expected) * np.linalg.norm(dense)
        assert abs(structure.inner_product(other, weight) - wanted) <= bound
        assert abs(other.inner_product(structure, weight) - wanted) <= bound
    assert structure.inner_product(structure, weight) == pytest.approx((expected**2).sum(), rel=1e-9)


# ---- activations --------------------------------------------------------------------------------------

#: By the number of a weight's dimensions: shapes of inputs behind the channels, and options of the layer.
PLACES: dict[int, tuple[tuple[int, ...], dict[str, object]]] = {
    3: ((9,), {"stride": 2, "padding": 1}),
    4: ((5, 6), {"stride": (1, 2), "padding": 1}),
    5: ((4, 3, 5), {"padding": 1, "dilation": 1}),
}


def operation_of(target: Target, weight: Tensor) -> tuple[LayerOperation, Tensor]:
    """The layer of a sample's weight, and an input for it."""
    generator = torch.Generator().manual_seed(3)
    inputs = target.shape[1]
    if len(target.shape) == 2:
        return LayerOperation(weight), torch.randn((2, 3, inputs), generator=generator, dtype=torch.float64)
    place, options = PLACES[len(target.shape)]
    if "grouped" in target.name:
        options, inputs = {**options, "groups": 4}, 4 * inputs
    x = torch.randn((2, inputs, *place), generator=generator, dtype=torch.float64)
    return LayerOperation(weight, options), x


@every_target
def test_forward_is_the_layer_with_the_changed_weight(target: Target) -> None:
    if len(target.shape) < 2:
        return  # a bias, or the weight of a norm
    structure, matrix, expected = made(target)
    operation, x = operation_of(target, matrix.reshape(target.shape))
    changed = dataclasses.replace(operation, weight=torch.from_numpy(expected).reshape(target.shape))
    wanted = to_numpy(changed(x))
    got = to_numpy(structure.forward(x, operation))
    assert np.abs(got - wanted).max() <= 50 * max(target.case.tol64, 1e-13) * (1 + np.abs(wanted).max())


@every_target
def test_gradients_of_forward_are_those_of_the_changed_weight(target: Target) -> None:
    if len(target.shape) < 2:
        return
    structure, matrix, _ = made(target)
    operation, x = operation_of(target, matrix.reshape(target.shape))
    leaves = [
        tensor.requires_grad_() for tensor in dict.fromkeys(structure.tensors()) if tensor.is_floating_point()
    ]
    own = torch.autograd.grad(structure.forward(x, operation).square().sum(), leaves, allow_unused=True)
    delta = structure.delta(given(structure, matrix))
    dense = operation.through(x, delta).square().sum()
    wanted = torch.autograd.grad(dense, leaves, allow_unused=True)
    for first, second in zip(own, wanted, strict=True):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert torch.allclose(first, second, rtol=1e-6, atol=1e-8 * float(second.abs().max()))


@every_case
def test_dora_forward_with_norms_that_were_measured_before(case: Case) -> None:
    from lycoris_algos.structures import Decomposed

    layer = LayerAdapter.from_tensors(case.tensors)
    target = next(case.targets())
    if layer.magnitude is None:
        return
    structure, matrix, _expected = made(target)
    assert isinstance(structure, Decomposed)
    operation, x = operation_of(target, matrix.reshape(target.shape))
    kept = structure.with_norms(matrix)
    assert kept.norms is not None
    assert torch.allclose(kept.forward(x, operation), structure.forward(x, operation), rtol=1e-12, atol=1e-13)


# ---- the forms it takes -------------------------------------------------------------------------------


@every_target
def test_the_flat_form_is_flat_and_comes_back(target: Target) -> None:
    weight = target.weight()
    structure = adapter(target).structure(target.shape, base=lambda: weight)
    flat = structure.to_values()
    assert all(isinstance(item, Tensor | float | int | str | None) for item in flat)
    values = iter((*flat, "what follows"))
    back = Structure.from_values(values)
    assert list(values) == ["what follows"]  # exactly its own items are taken
    assert type(back) is type(structure)
    again = back.to_values()
    assert len(again) == len(flat)
    assert all(first is second or first == second for first, second in zip(flat, again, strict=True))
    # As ComfyUI does it: every tensor of the flat form is moved, everything else stays.
    moved = Structure.from_values(iter([item.clone() if isinstance(item, Tensor) else item for item in flat]))
    start = target.weight()
    assert same_bits(apply_(start.clone(), [(moved, 0.7)]), apply_(start.clone(), [(structure, 0.7)]))


@every_target
def test_a_cast_keeps_the_form(target: Target) -> None:
    weight = target.weight()
    structure = adapter(target).structure(target.shape, base=lambda: weight)
    kinds = [
        [item for item in form.to_values() if isinstance(item, str)] for form in (structure, made(target)[0])
    ]
    assert kinds[0] == kinds[1]


@every_target
def test_the_ready_form_is_the_same_change(target: Target) -> None:
    structure, matrix, expected = made(target)
    ready = structure.ready(CPU, torch.float64)
    weight = given(ready, matrix)
    close(to_numpy(ready.delta(weight)), expected, target.case, 20)
    rows = matrix.clone()
    ready.add_rows_(rows, 0, 1.0, rows)
    close(to_numpy(rows) - to_numpy(matrix), expected, target.case, 1000)


@every_target
def test_making_ready_is_idempotent_and_copies_nothing_twice(target: Target) -> None:
    for dtype in (torch.float32, torch.float64):
        cast, matrix, _ = made(target, dtype)
        once = cast.ready(CPU, dtype)
        twice = once.ready(CPU, dtype)
        assert type(twice) is type(once)
        for first, second in zip(once.tensors(), twice.tensors(), strict=True):
            assert first.data_ptr() == second.data_ptr()
        weight = given(once, matrix)
        assert same_bits(once.delta(weight), twice.delta(weight))


@every_target
def test_factors_that_need_no_solving_are_not_copied(target: Target) -> None:
    layer = adapter(target)
    held = {value.data_ptr() for item in layer.components() for _, value in item.tensors()}
    structure = layer.structure(target.shape, base=lambda: target.weight())
    plain = {"lora", "loha", "lokr", "glora", "ia3", "full", "norm", "norm_bias", "full_bias", "dora"}
    if set(target.algos) <= plain and "tucker" not in target.name:
        assert {tensor.data_ptr() for tensor in structure.tensors()} <= held


@every_target
def test_a_repr_is_short_and_shows_no_numbers(target: Target) -> None:
    structure, _, _ = made(target)
    assert len(repr(structure)) < 60
