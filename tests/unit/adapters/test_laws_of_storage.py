"""Laws of what adapters store: factors are left alone, files come back, other shapes are refused."""

from __future__ import annotations

import pytest
import torch
from laws import FACTOR_DTYPES, adapter, every_case, every_target, factors
from oracles import same_bits
from samples import Case, Target

from lycoris_algos import LayerAdapter, ShapeMismatchError
from lycoris_algos.adapters import algorithms, suffixes_beside

# ---- the factors --------------------------------------------------------------------------------------


@every_target
def test_factors_stay_as_they_are(target: Target) -> None:
    for stored_dtype in (torch.float32, torch.float64, torch.bfloat16):
        stored = target.case.stored(stored_dtype)
        before = {suffix: value.clone() for suffix, value in stored.items()}
        layer = adapter(target, stored)
        kept = {value.data_ptr() for value in stored.values()}
        held = {suffix: value.data_ptr() for suffix, value in factors(layer).items()}
        assert kept.issuperset(held.values()), "a factor was copied on construction"
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            layer.delta(target.weight(dtype))
            layer.add_to_(target.weight(dtype), 0.7)
            for part in layer.weight_components:
                made = part.structure(target.shape, base=lambda: target.weight())
                made.ready(torch.device("cpu"), torch.float64)
        assert all(same_bits(stored[suffix], before[suffix]) for suffix in stored)
        assert held == {suffix: value.data_ptr() for suffix, value in factors(layer).items()}


@every_target
def test_one_layer_serves_inference_and_training(target: Target) -> None:
    layer = adapter(target)
    parameter = torch.nn.Parameter(target.weight())
    layer.add_to_(parameter, 0.7)
    plain = layer.add_to_(target.weight(), 0.7)
    assert same_bits(parameter.detach(), plain)
    assert parameter.grad_fn is None
    with torch.inference_mode():
        inside = layer.add_to_(target.weight(), 0.7)
        assert inside.is_inference()
        assert torch.equal(inside, plain)
    assert same_bits(layer.add_to_(target.weight(), 0.7), plain)


# ---- files --------------------------------------------------------------------------------------------


@every_case
def test_tensors_survive_the_round_trip(case: Case) -> None:
    for dtype in (torch.float64, *FACTOR_DTYPES):
        stored = case.stored(dtype)
        layer = LayerAdapter.from_tensors(stored)
        out = layer.to_tensors()
        assert out.keys() == stored.keys()
        for suffix, value in stored.items():
            if suffix in factors(layer):
                assert same_bits(out[suffix], value)
            else:  # a number, however it was spelled: alpha may be () or (1,), of any dtype
                assert torch.equal(out[suffix].double().flatten(), value.double().flatten())
                assert suffix != "alpha" or out[suffix].shape == ()
        again = LayerAdapter.from_tensors(out).to_tensors()
        assert all(same_bits(again[suffix], out[suffix]) for suffix in out)


@every_case
def test_exactly_one_algorithm_accepts_the_tensors(case: Case) -> None:
    rest = {suffix: value for suffix, value in case.tensors.items() if suffix not in suffixes_beside()}
    accepting = [
        kind.algo
        for kind in algorithms()
        if rest and not kind.keys.problems(rest) and not kind.shape_problems(rest)
    ]
    names = {kind.algo for kind in algorithms()}
    assert accepting == [algo for algo in case.algos if algo in names]


@every_case
def test_a_layer_is_made_of_what_its_tensors_say(case: Case) -> None:
    layer = LayerAdapter.from_tensors(case.tensors)
    assert tuple(part.algo for part in layer.components()) == (*case.algos, *case.bias_algos)
    bias = () if layer.bias is None else tuple(part.algo for part in layer.bias.components())
    assert bias == case.bias_algos
    assert layer.size_bytes == sum(case.tensors[suffix].nbytes for suffix in factors(layer))
    layer.require_finite()
    shuffled = LayerAdapter.from_tensors(dict(reversed(case.tensors.items())))
    assert [part.algo for part in shuffled.components()] == [part.algo for part in layer.components()]


# ---- shapes -------------------------------------------------------------------------------------------


@every_target
def test_a_weight_of_another_size_is_refused_untouched(target: Target) -> None:
    layer = adapter(target)
    layer.fits(target.shape)
    o, *rest = target.shape
    wrong = [(o + 1, *rest), (2 * o, *rest), (o, *rest, 2), ()]
    if rest:
        wrong += [(o, rest[0] + 1, *rest[1:]), (o,), (rest[0] + o, o, *rest[1:]), (o * rest[0], *rest[1:])]
    else:
        wrong += [(1, o)]
    for shape in wrong:
        if target.what == "weight" and target.case.also_fits(shape):
            continue  # it differs only where any size will do
        with pytest.raises(ShapeMismatchError, match=r"\d"):
            layer.fits(shape)
        with pytest.raises(ShapeMismatchError):
            layer.delta(torch.zeros(shape))
        weight = torch.randn(shape)
        before = weight.clone()
        with pytest.raises(ShapeMismatchError):
            layer.add_to_(weight, 1.0)
        assert same_bits(weight, before)


@pytest.mark.parametrize("shape", [(1, 12), (12, 1), (1, 4, 3), (1, 1)], ids=str)
def test_one_magnitude_is_that_of_the_only_channel(shape: tuple[int, ...]) -> None:
    # DoRA's axis does not show in the shape (1, 1), and makes no difference to the norm.
    tensors = {"diff": torch.randn(shape), "dora_scale": torch.full((1,) * len(shape), 2.0)}
    combined = torch.randn(shape, dtype=torch.float64)
    expected = 2 * (combined + tensors["diff"]) / (combined + tensors["diff"]).norm()
    got = LayerAdapter.from_tensors(tensors).add_to_(combined, 1.0)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("magnitudes", "shape"),
    [((1, 16), (16, 12)), ((16, 1), (12, 16)), ((1, 1), (5, 4)), ((1,), (5, 1)), ((16,), (12, 16))],
    ids=str,
)
def test_magnitudes_of_other_channels_are_refused(
    magnitudes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    layer = LayerAdapter.from_tensors({"diff": torch.ones(shape), "dora_scale": torch.ones(magnitudes)})
    with pytest.raises(ShapeMismatchError, match="DoRA has"):
        layer.fits(shape)
