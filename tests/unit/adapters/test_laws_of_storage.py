"""Laws of what adapters store: factors are left alone, files come back, other shapes are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from laws import FACTOR_DTYPES, adapter, every_case, every_target, factors
from oracles import expected_delta, same_bits, to_numpy
from samples import CASES, Case, Target
from torch import Tensor

from lycoris_algos import LayerAdapter, LycorisError, ShapeMismatchError
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
def test_factors_may_be_views(target: Target) -> None:
    stored = target.case.stored(torch.float64)
    views = {
        suffix: value.mT.contiguous().mT if value.dim() > 1 else torch.stack((value, value), -1)[..., 0]
        for suffix, value in stored.items()
    }
    start = target.weight(torch.float64)
    plain, strided = adapter(target, stored), adapter(target, views)
    assert torch.allclose(strided.delta(start), plain.delta(start), rtol=1e-9, atol=1e-11)
    for dtype, error in ((torch.float64, 1e-9), (torch.bfloat16, 1e-2)):
        wanted, got = (layer.add_to_(start.to(dtype, copy=True), 0.7) for layer in (plain, strided))
        assert torch.allclose(got, wanted, rtol=error, atol=1e-11)


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


#: The algorithms that PEFT reads by its default configuration, and their tensors that it has no word for.
READ_BY_PEFT = {
    "lora": {"lora_mid.weight"},
    "loha": set(),
    "lokr": set(),
    "hra": set(),
    "miss": {"miss_block.mini"},
}


@every_case
def test_the_form_for_peft_is_the_same_change_without_an_alpha(case: Case) -> None:
    layer = LayerAdapter.from_tensors(case.tensors)
    if layer.algorithm is None:
        return
    form = layer.algorithm.to_peft()
    if layer.algorithm.algo in READ_BY_PEFT:
        assert (form is not None) == READ_BY_PEFT[layer.algorithm.algo].isdisjoint(case.tensors)
    if form is None:
        return
    stored = form.to_tensors()
    assert stored.keys() == layer.algorithm.to_tensors().keys() - {"alpha", "scale"}
    weight = next(case.targets()).weight()
    wanted, got = (LayerAdapter(own).delta(weight) for own in (layer.algorithm, form))
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    if "scale" not in case.tensors and "alpha" not in case.tensors:  # nothing is to be folded into a factor
        assert all(value.data_ptr() == case.tensors[suffix].data_ptr() for suffix, value in stored.items())


#: What reports say about samples, besides alpha and a rank.
FACTS: dict[str, dict[str, float]] = {
    "lora-linear": {"rank": 4, "alpha": 2},
    "lora-no_alpha": {"rank": 4},
    "loha-linear": {"rank": 3, "alpha": 2},
    "lokr-linear": {"rank": 2, "alpha": 1, "factor out": 3, "factor in": 4},
    "lokr-factor_2": {"rank": 3, "alpha": 1, "factor": 2},
    "lokr-linear-both_whole": {"alpha": 7, "factor out": 3, "factor in": 4},
    "lokr-linear-w1_low_rank": {"rank": 2, "alpha": 1, "factor out": 3, "factor in": 4},
    "glora-linear": {"rank": 3, "alpha": 2},
    "glokr-linear": {"rank": 2, "alpha": 1},
    "glokr-conv2d_3x3": {"rank": 1, "alpha": 2},
    "glokr-linear-all_whole": {"alpha": 7},
    "ia3-linear-input": {},
    "tlora-linear": {"rank": 4, "alpha": 2},
    "oft-linear": {"block size": 4},
    "oft-constraint": {"block size": 4, "constraint": 0.05},
    "boft-linear": {"block size": 6},
    "boft_inputs-linear": {"block size": 4},
    "boft_inputs-conv2d_3x3": {"block size": 6},
    "hra-linear": {"reflections": 4},
    "miss-linear": {"block": 4},
    "miss_bat-linear": {"block": 4},
}


@pytest.mark.parametrize("name", FACTS)
def test_what_a_report_says_of_it(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    algorithm = LayerAdapter.from_tensors(case.tensors).algorithm
    assert algorithm is not None
    assert algorithm.facts() == pytest.approx(FACTS[name])


# ---- shapes -------------------------------------------------------------------------------------------


@every_target
def test_a_weight_of_another_size_is_refused_untouched(target: Target) -> None:
    layer = adapter(target)
    layer.fits(target.shape)
    o, *rest = target.shape
    wrong = [(o + 1, *rest), (2 * o, *rest), (o, *rest, 2), ()]
    if rest:
        wrong += [(o, rest[0] + 1, *rest[1:]), (o,), (rest[0] + o, o, *rest[1:]), (o * rest[0], *rest[1:])]
        wrong += [(o, 1, *rest[1:]), (1, *rest)]
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


def spoiled(value: Tensor) -> Iterator[Tensor]:
    """Tensors of other shapes than ``value``: each axis longer, shorter or empty; an axis more or less."""
    shapes = [(*value.shape, 2), (1, *value.shape), (value.numel(),)]
    for axis, size in enumerate(value.shape):
        for other in (0, 1, size - 1, size + 1, 2 * size):
            shapes.append((*value.shape[:axis], other, *value.shape[axis + 1 :]))
    if value.dim() > 1:
        shapes.append((*value.shape[:-2], value.shape[-1], value.shape[-2]))
    for shape in shapes:
        if shape != tuple(value.shape):
            yield (torch.rand(shape) + 0.5).to(value.dtype)


@every_target
def test_tensors_of_other_shapes_are_refused_or_mean_what_the_formula_says(target: Target) -> None:
    tensors, weight = target.case.tensors, target.weight(torch.float64)
    own = LayerAdapter.from_tensors(tensors)
    for suffix, value in tensors.items():
        for other in spoiled(value):
            changed = {**tensors, suffix: other}
            try:
                layer = LayerAdapter.from_tensors(changed)
                if layer.titles != own.titles or (layer.bias is None and target.what == "bias"):
                    continue  # those of another algorithm
                adapter(target, changed).fits(target.shape)
            except LycorisError:
                continue
            where = f"{suffix} {tuple(other.shape)} instead of {tuple(value.shape)}"
            try:
                expected = expected_delta(target.algos, changed, weight)
            except (ValueError, IndexError) as error:
                raise AssertionError(f"accepted, though the formula means nothing: {where}") from error
            got = to_numpy(adapter(target, changed).delta(weight))
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), where


# ---- what stands beside an algorithm ------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["bias_indices", "bias_values", "bias_size"])
def test_an_extra_without_one_of_its_tensors_is_named(missing: str) -> None:
    (case,) = (case for case in CASES if case.name == "sparse-int64")
    tensors = {suffix: value for suffix, value in case.tensors.items() if suffix != missing}
    with pytest.raises(LycorisError, match=f"is incomplete: '{missing}' is missing"):
        LayerAdapter.from_tensors(tensors)


def test_a_bias_is_needed_where_anything_stored_changes_it() -> None:
    scaled = {"ia3_l": torch.ones(24, 1)}  # scales the outputs, and with them a bias if there is one
    assert not LayerAdapter.from_tensors(scaled).needs_bias
    assert LayerAdapter.from_tensors({**scaled, "diff_b": torch.ones(24)}).needs_bias
    assert not LayerAdapter.from_tensors({"diff": torch.ones(24, 16)}).needs_bias


def test_every_tensor_must_fit_the_dtype_that_is_stored() -> None:
    (case,) = (case for case in CASES if case.name == "sparse-int64")
    layer = LayerAdapter.from_tensors({**case.tensors, "bias_values": case.tensors["bias_values"] * 1e6})
    layer.stored_as(torch.bfloat16)
    with pytest.raises(LycorisError, match=r"'bias_values' reaches .* beyond the largest number of float16"):
        layer.stored_as(torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
def test_places_are_whole_numbers(dtype: torch.dtype) -> None:
    (case,) = (case for case in CASES if case.name == "sparse-int64")
    for suffix in ("bias_indices", "bias_size"):
        with pytest.raises(LycorisError, match=f"'{suffix}' is stored as .*, but must hold whole numbers"):
            LayerAdapter.from_tensors({**case.tensors, suffix: case.tensors[suffix].to(dtype)})


#: Shapes in place of vectors that name no channel, by sample and tensor.
NO_VECTORS = (
    ("lora+dora_vector-linear", "lora_magnitude_vector", ((4, 6), (24, 2), ())),
    ("lora+dora-linear-output", "dora_scale", ((4, 6), (24, 2), (1, 1, 24), (0,), (0, 1))),
    ("ia3-linear-input", "weight", ((4, 4), (0,), (), (16, 2))),
    ("ia3_peft-linear-input", "ia3_l", ((16,), (2, 16), (1, 16, 1), (1, 1), (0, 1), ())),
)


@pytest.mark.parametrize(
    ("name", "suffix", "shape"),
    [(name, suffix, shape) for name, suffix, shapes in NO_VECTORS for shape in shapes],
    ids=str,
)
def test_what_is_no_vector_is_refused(name: str, suffix: str, shape: tuple[int, ...]) -> None:
    (case,) = (case for case in CASES if case.name == name)
    with pytest.raises(ShapeMismatchError, match=re.escape(f"has the shape {shape}")):
        LayerAdapter.from_tensors({**case.tensors, suffix: torch.ones(shape)})


@pytest.mark.parametrize("shape", [(12, 4, 6, 3), (12, 24, 3, 1), (12, 72)], ids=str)
def test_a_change_of_the_inputs_fits_no_other_number_of_them(shape: tuple[int, ...]) -> None:
    (case,) = (case for case in CASES if case.name == "glokr-conv2d_3x3")
    with pytest.raises(ShapeMismatchError, match="takes 8 input channels"):
        LayerAdapter.from_tensors(case.tensors).fits(shape)


@pytest.mark.parametrize("place", [(24, 0), (0, 16), (-1, 0), (0, -1)], ids=str)
def test_positions_outside_of_the_weight_are_refused(place: tuple[int, int]) -> None:
    tensors = {"bias_indices": torch.tensor([[0, place[0], 23], [0, place[1], 15]])}
    tensors |= {"bias_values": torch.ones(3), "bias_size": torch.tensor([24, 16])}
    with pytest.raises(LycorisError, match="positions outside 24×16"):
        LayerAdapter.from_tensors(tensors).fits((24, 16))


@pytest.mark.parametrize("kernel", [(2, 1), (1, 3)], ids=str)
def test_pefts_oft_of_a_larger_kernel_is_refused(kernel: tuple[int, int]) -> None:
    (case,) = (case for case in CASES if case.name == "oft_v2-peft-conv2d_1x1")
    fewer = case.shape[1] // (kernel[0] * kernel[1])
    with pytest.raises(ShapeMismatchError, match="overlapping patches"):
        LayerAdapter.from_tensors(case.tensors).fits((case.shape[0], fewer, *kernel))


@every_case
def test_a_layer_is_plain_if_nothing_stands_beside_its_algorithm(case: Case) -> None:
    layer = LayerAdapter.from_tensors(case.tensors)
    assert layer.plain is (layer.algorithm if len(case.algos) == 1 else None)


@every_case
def test_magnitudes_of_rows_have_a_form_for_peft(case: Case) -> None:
    magnitude = LayerAdapter.from_tensors(case.tensors).magnitude
    if magnitude is not None:
        form = magnitude.to_peft()
        assert (form is None) == magnitude.over_rows
        if form is not None:
            (stored,) = form.to_tensors().values()
            (own,) = magnitude.to_tensors().values()
            assert torch.equal(stored, own.flatten())


def test_a_vector_of_hra_may_lie_across_an_input() -> None:
    vectors = torch.eye(16, 4)  # no vector sees the last inputs
    assert LayerAdapter.from_tensors({"hra_u": vectors}).delta(torch.ones(3, 16)).any()


def test_a_piece_may_be_a_single_row() -> None:
    (case,) = (case for case in CASES if case.name == "lora-linear")
    layer = LayerAdapter.from_tensors(case.tensors)
    piece = layer.rows(layer.structure((24, 16)), 7, 1, 24)
    assert torch.equal(piece.delta(), layer.delta((24, 16))[7:8])
