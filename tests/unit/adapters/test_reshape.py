"""``reshape_weight``: the weight becomes larger, with zeros, and is changed then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import check_rounded_once, expected_delta, same_bits, to_numpy, tolerance
from samples import Case
from torch import Tensor

from lycoris_algos import (
    BadValueError,
    LayerAdapter,
    ShapeMismatchError,
    UnknownAdapterError,
    apply_,
    structures,
)
from lycoris_algos.structures import Structure

#: (shape of the weight, shape that is asked for)
SHAPES = (
    ((24, 10), (24, 16)),
    ((20, 16), (24, 16)),
    ((20, 10), (24, 16)),
    ((24, 16), (24, 16)),
    ((10, 4, 3, 3), (12, 8, 3, 3)),
    ((10, 4, 1, 1), (12, 8, 3, 3)),
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)


def lora(shape: tuple[int, ...], rank: int = 3) -> dict[str, Tensor]:
    ones = (1,) * (len(shape) - 2)
    return {
        "lora_up.weight": torch.randn(shape[0], rank, *ones) * 0.3,
        "lora_down.weight": torch.randn(rank, *shape[1:]) * 0.3,
        "alpha": torch.tensor(2.0),
    }


def asked(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"reshape_weight": torch.tensor(shape)}


def padded(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``weight`` in the corner of zeros, one element at a time."""
    larger = torch.zeros(shape, dtype=weight.dtype)
    for place in np.ndindex(*weight.shape):
        larger[place] = weight[place]
    return larger


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("old", "new"), SHAPES, ids=str)
def test_the_enlarged_weight_is_changed_and_rounded_once(
    old: tuple[int, ...], new: tuple[int, ...], dtype: torch.dtype
) -> None:
    case = Case("", ("lora",), lora(new), new)
    layer = LayerAdapter.from_tensors({**case.tensors, **asked(new)})
    weight = torch.randn(old).to(dtype)
    before, larger = weight.clone(), padded(weight, new)
    delta = expected_delta(case.algos, case.tensors, larger)
    formed = layer.delta(weight)
    assert tuple(formed.shape) == new
    assert np.abs(to_numpy(formed) - delta).max() <= 1e-5 * np.abs(delta).max()
    for multiplier in (1.0, -0.5):
        got = layer.add_to_(weight, multiplier)
        assert (tuple(got.shape), got.dtype) == (new, dtype)
        base, change = to_numpy(larger), multiplier * delta
        check_rounded_once(got, base + change, tolerance(case, dtype, base, change))
        if old == new:
            assert got is weight
            weight.copy_(before)
        else:
            assert same_bits(weight, before), "the smaller weight was changed"


def test_dora_takes_the_norms_of_the_enlarged_weight() -> None:
    new = (24, 16)
    tensors = {**lora(new), "dora_scale": torch.rand(1, 16) + 0.5}
    layer = LayerAdapter.from_tensors({**tensors, **asked(new)})
    weight = torch.randn(24, 10, dtype=torch.float64)
    larger = padded(weight, new)
    expected = to_numpy(larger) + 0.7 * expected_delta(("lora", "dora"), tensors, larger)
    assert np.abs(to_numpy(layer.add_to_(weight, 0.7)) - expected).max() < 1e-12


def test_a_shape_does_in_place_of_a_weight() -> None:
    layer = LayerAdapter.from_tensors({**lora((24, 16)), **asked((24, 16))})
    assert same_bits(layer.delta((24, 10)), layer.delta(torch.zeros(24, 10)))
    assert same_bits(layer.delta((24, 16)), layer.delta(torch.zeros(24, 16)))


def test_multiplier_0_keeps_the_weight_and_its_shape() -> None:
    layer = LayerAdapter.from_tensors({**lora((24, 16)), **asked((24, 16))})
    weight = torch.randn(24, 10)
    before = weight.clone()
    assert layer.add_to_(weight, 0.0) is weight
    assert same_bits(weight, before)


def test_what_comes_after_it_in_a_stack_sees_the_larger_weight() -> None:
    small, large = lora((24, 10)), lora((24, 16))
    weight = torch.randn(24, 10, dtype=torch.float64)
    first, last = LayerAdapter.from_tensors(small), LayerAdapter.from_tensors(large)
    enlarging = LayerAdapter.from_tensors({**lora((24, 16)), **asked((24, 16))})
    got = apply_(weight.clone(), [(enlarging, 1.0), (last, 0.5)])
    expected = padded(weight, (24, 16)) + enlarging.delta(weight) + 0.5 * last.delta((24, 16)).double()
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)
    # One for the old shape does not fit any more, which is known before anything changes.
    before = weight.clone()
    with pytest.raises(ShapeMismatchError, match="24×16"):
        apply_(weight, [(enlarging, 1.0), (first, 1.0)])
    assert same_bits(weight, before)


@pytest.mark.parametrize(
    "shape", [(25, 16), (24, 17), (24,), (24, 16, 1), ()], ids=lambda shape: "x".join(map(str, shape))
)
def test_it_never_makes_a_weight_smaller(shape: tuple[int, ...]) -> None:
    layer = LayerAdapter.from_tensors({**lora((24, 16)), **asked((24, 16))})
    weight = torch.randn(shape)
    before = weight.clone()
    with pytest.raises(ShapeMismatchError, match="into which the weight"):
        layer.fits(shape)
    for change in (lambda: layer.delta(weight), lambda: layer.add_to_(weight, 1.0)):
        with pytest.raises(ShapeMismatchError, match="24×16"):
            change()
    assert same_bits(weight, before)


def test_a_core_of_another_shape_than_the_one_asked_for() -> None:
    with pytest.raises(ShapeMismatchError, match="24×20"):
        LayerAdapter.from_tensors({**lora((24, 16)), **asked((24, 20))})


def test_it_changes_nothing_alone() -> None:
    with pytest.raises(UnknownAdapterError, match="reshape_weight, which changes no weight by itself"):
        LayerAdapter.from_tensors(asked((24, 16)))
    with pytest.raises(UnknownAdapterError, match="changes no weight by itself"):
        LayerAdapter.from_tensors({**asked((24, 16)), "diff_b": torch.ones(24)})


@pytest.mark.parametrize(
    "shape", [(), (0, 16), (-24, 16), (24, 2**24 + 1), (2**40,)], ids=lambda shape: "x".join(map(str, shape))
)
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    stored = torch.tensor(shape, dtype=torch.int64)
    with pytest.raises(ShapeMismatchError, match="asks for the impossible shape"):
        LayerAdapter.from_tensors({**lora((24, 16)), "reshape_weight": stored})


@pytest.mark.parametrize("stored", [torch.ones(9), torch.ones(1, 2)], ids=["long", "matrix"])
def test_what_is_no_shape_is_refused(stored: Tensor) -> None:
    with pytest.raises(ShapeMismatchError, match="'reshape_weight' must be a short list"):
        LayerAdapter.from_tensors({**lora((24, 16)), "reshape_weight": stored})
    with pytest.raises(BadValueError, match="'reshape_weight' is nan"):
        LayerAdapter.from_tensors({**lora((24, 16)), "reshape_weight": torch.tensor((24.0, float("nan")))})


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float16], ids=str)
def test_the_shape_survives_files_and_the_flat_form(dtype: torch.dtype) -> None:
    tensors = {**lora((24, 16)), "reshape_weight": torch.tensor((24, 16)).to(dtype)}
    layer = LayerAdapter.from_tensors(tensors)
    assert [item.algo for item in layer.components()] == ["lora", "reshape"]
    stored = layer.to_tensors()
    assert stored.keys() == tensors.keys()
    assert same_bits(stored["reshape_weight"], torch.tensor((24, 16)))
    structure = layer.structure((24, 10))
    again = Structure.from_values(iter(structure.to_values()))
    assert again.new_shape((24, 10)) == structure.new_shape((24, 10)) == layer.new_shape((24, 10)) == (24, 16)
    weight = torch.randn(24, 10)
    expected = layer.add_to_(weight.clone(), 0.7)
    assert expected.shape == (24, 16)
    assert same_bits(LayerAdapter.from_tensors(stored).add_to_(weight.clone(), 0.7), expected)
    assert same_bits(structures.apply_(weight.clone(), [(again, 0.7)]), expected)
