"""Where a structure takes another way: nothing to add, one term of many, factors that are thin or are not."""

from __future__ import annotations

import pytest
import torch

from lycoris_algos.structures import (
    Dense,
    Kronecker,
    LayerOperation,
    LowRank,
    RowScaling,
    Sum,
    apply_,
)

WEIGHT = torch.arange(24.0, dtype=torch.float64).reshape(6, 4) / 8
DENSE = Dense(torch.full((6, 4), 0.5, dtype=torch.float64))
SCALING = RowScaling(torch.full((6,), 0.25, dtype=torch.float64))


def test_a_sum_of_nothing_changes_nothing() -> None:
    nothing, x = Sum(()), torch.ones(3, 4, dtype=torch.float64)
    assert torch.equal(nothing.delta(WEIGHT), torch.zeros_like(WEIGHT))
    assert torch.equal(nothing.forward(x, LayerOperation(WEIGHT)), torch.zeros(3, 6, dtype=torch.float64))
    assert nothing.factors(WEIGHT) is None
    assert nothing.exact_rank is None


def test_the_multipliers_of_a_sum_count_for_activations() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    for terms in ((DENSE, SCALING), (SCALING, DENSE)):
        both = Sum(terms, (3.0, -2.0))
        wanted = x @ both.delta(WEIGHT).T
        assert torch.allclose(both.forward(x, LayerOperation(WEIGHT)), wanted, rtol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_one_change_of_a_stack_that_needs_the_weight_is_enough_to_need_its_order(order: int) -> None:
    entries = [(DENSE, 1.0), (SCALING, 1.0)][::order]
    with pytest.raises(TypeError, match="in the order it was trained in"):
        apply_(WEIGHT.clone(), entries, transform=torch.Tensor.clone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (24,), ()], ids=str)
def test_a_weight_of_any_dtype_is_changed_in_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for transform in (None, torch.Tensor.clone):
        weight = torch.ones(shape, dtype=dtype)
        matrix = weight.reshape(shape[0] if shape else 1, -1)
        change = Dense(torch.full(matrix.shape, 0.5, dtype=torch.float64))
        assert apply_(weight, [(change, 3.0)], transform=transform, inverse=transform) is weight
        assert torch.equal(weight, torch.full(shape, 2.5, dtype=dtype))


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_kronecker_product_of_any_factors_is_that_product(rank: int, scale: float) -> None:
    thin = LowRank(torch.randn(3, rank).double(), torch.randn(rank, 3).double())
    for first, second in ((thin, DENSE), (DENSE, thin), (thin, thin)):
        product = Kronecker(first, second, scale)
        wanted = torch.kron(first.delta(), second.delta()) * scale
        up, down = product.factors()
        assert torch.allclose(up @ down, wanted, rtol=1e-10, atol=1e-12)
        assert torch.allclose(
            product.ready(wanted.device, wanted.dtype).delta(), wanted, rtol=1e-10, atol=1e-12
        )
        assert product.inner_product(product) == pytest.approx(float(wanted.square().sum()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_dense_change_is_computed_in_float32(dtype: torch.dtype) -> None:
    change = Dense(torch.ones(3, 2).to(dtype))
    assert change.delta().dtype == torch.float32
    assert change.rows(1, 3).dtype == torch.float32
