"""Laws that hold for every algorithm and every sample of it: tests/support/samples and oracles.

What the comparisons allow, and why, is written in oracles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from laws import FACTOR_DTYPES, MULTIPLIERS, WEIGHT_DTYPES, adapter, every_case, every_target, factors
from oracles import ORACLES, check_delta, check_rounded_once, expected_delta, same_bits, to_numpy, tolerance
from row_blocks import set_blocks
from samples import CASES, Case, Target
from torch import Tensor

from lycoris_algos import LayerAdapter
from lycoris_algos.adapters import algorithms, component, extras, modifiers
from lycoris_algos.adapters._whole import WholeTensor
from lycoris_algos.ops.rows import rows_per_block
from lycoris_algos.structures import Structure, apply_

# ---- the samples cover the library --------------------------------------------------------------------


#: Not made from a layer's tensors alone. A new shape makes no change by itself (test_reshape.py); a
#: residual that holds the base weight as well is stored exactly like one that does not, and only
#: network/corrections.py tells it apart (tests/unit/network/test_corrections.py).
ELSEWHERE = ("reshape", "sparse_target")
#: What is solved or contracted beforehand is kept in float32: 6e-8 of a rotation R, and R − I, a tenth of
#: it or more in the samples, is what changes the weight.
PREPARED = 2e-6
#: What depends on the weight and is in proportion to a stored factor all the same.
LINEAR_IN_A_FACTOR = {"glora", "ia3"}
#: What is stored with the shape of its weight, and what is where it stores a kernel as such: flat factors
#: of a LoHa or LoKr belong to a Linear or to a convolution.
TELL_THE_SHAPE = {"lora", "glora"} | {cls.algo for cls in extras() if issubclass(cls, WholeTensor)}
TELL_A_KERNEL = {"loha", "lokr"}
CHANGING = [cls for cls in (*algorithms(), *extras(), *modifiers()) if cls.algo not in ELSEWHERE]


@pytest.mark.parametrize("cls", CHANGING, ids=lambda cls: cls.algo)
def test_every_algorithm_has_an_oracle_and_samples(cls: type) -> None:
    own = [case for case in CASES if cls.algo in (*case.algos, *case.bias_algos)]
    assert cls.algo in ORACLES, "write its formula in tests/support/oracles"
    assert own, "write its samples in tests/support/samples"
    stored = frozenset().union(*(case.tensors for case in own))
    assert cls.keys.names <= stored, f"no sample stores {sorted(cls.keys.names - stored)}"
    # An extra that follows from its algorithm's tensors has no keys of its own.
    assert cls.keys.names in (ORACLES[cls.algo].keys, frozenset())


def test_names_of_samples_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


# ---- the definition -----------------------------------------------------------------------------------


@every_target
def test_delta_is_the_formula(target: Target) -> None:
    layer = adapter(target)
    for dtype in WEIGHT_DTYPES:
        weight = target.weight(dtype)
        before = weight.clone()
        expected = expected_delta(target.algos, target.case.tensors, weight)
        got = layer.delta(weight)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.shape == weight.shape
        check_delta(got, expected, target.case, dtype)
        assert same_bits(weight, before)


@every_target
def test_factors_may_be_stored_in_any_dtype(target: Target) -> None:
    for stored_dtype in FACTOR_DTYPES:
        stored = target.case.stored(stored_dtype)
        layer = adapter(target, stored)
        for dtype in (torch.float64, torch.float32):
            weight = target.weight(dtype)
            expected = expected_delta(target.algos, stored, weight)
            check_delta(layer.delta(weight), expected, target.case, dtype)
            layer.add_to_(weight, 1.0)
            base = to_numpy(target.weight(dtype))
            check_rounded_once(weight, base + expected, tolerance(target.case, dtype, base, expected))


@every_target
def test_delta_of_a_shape_is_the_delta_of_a_weight(target: Target) -> None:
    layer = adapter(target)
    if layer.needs_weight:
        with pytest.raises(TypeError, match="give the weight"):
            layer.delta(target.shape)
        return
    weight = target.weight()
    assert same_bits(layer.delta(target.shape), layer.delta(weight))
    assert same_bits(layer.delta(list(target.shape)), layer.delta(weight))
    wide = adapter(target, target.case.stored(torch.float64))
    assert same_bits(wide.delta(target.shape), wide.delta(weight.double()))


@every_target
def test_gradients_reach_every_factor(target: Target) -> None:
    stored = target.case.stored(torch.float64)
    plain = adapter(target, stored)
    names = [name for name, value in factors(plain).items() if value.is_floating_point()]
    weight = target.weight(torch.float64)
    leaves = [stored[name].requires_grad_() for name in names]
    if plain.needs_weight:
        leaves.append(weight.requires_grad_())

    def delta(*values: Tensor) -> Tensor:
        layer = adapter(target, {**stored, **dict(zip(names, values))})  # noqa: B905 - W may come last
        return layer.delta(values[-1] if layer.needs_weight else weight)

    assert torch.autograd.gradcheck(delta, leaves, fast_mode=True)
    gradients = torch.autograd.grad(delta(*leaves).square().sum(), leaves, allow_unused=True)
    used = frozenset().union(*(component(algo).keys.names for algo in target.algos))
    for name, gradient in zip(names, gradients, strict=False):
        assert (gradient is not None) == (name in used), name


# ---- low rank -----------------------------------------------------------------------------------------


@every_target
def test_low_rank_factors_are_the_delta_and_smaller(target: Target) -> None:
    layer = adapter(target)
    weight = target.weight(torch.float64)
    factored = layer.low_rank(weight)
    if factored is None:
        rank, (o, *rest) = layer.exact_rank, target.shape
        columns = int(torch.Size(rest).numel())
        assert rank is None or rank * (o + columns) >= o * columns
        return
    up, down = factored
    assert up.numel() + down.numel() < weight.numel()
    expected = expected_delta(target.algos, target.case.tensors, weight)
    check_delta((up @ down).reshape(weight.shape), expected, target.case, torch.float64)
    alone = layer.low_rank()
    assert (alone is None) == (layer.needs_weight or layer.matrix_shape is None)
    if alone is not None:
        got = (alone[0] @ alone[1]).reshape(weight.shape)
        assert got.dtype == torch.float32
        check_delta(got, expected, target.case, torch.float32)


@every_target
def test_multiplied_is_the_multiplied_delta_in_the_same_form(target: Target) -> None:
    layer = adapter(target, target.case.stored(torch.float64))
    weight = target.weight(torch.float64)
    expected = to_numpy(layer.delta(weight))
    assert layer.multiplied(1.0) is layer
    dependent = {part.algo for part in layer.components() if getattr(part, "needs_weight", True)}
    dependent |= {"tlora"} & set(target.algos)  # what it starts from is no factor, known or not
    assert layer.linear == (dependent <= LINEAR_IN_A_FACTOR)
    for multiplier in (0.7, -2.0):
        scaled = layer.multiplied(multiplier)
        assert (scaled is None) == (not layer.linear)
        if scaled is None:
            continue
        assert scaled.to_tensors().keys() == layer.to_tensors().keys()
        got = to_numpy(scaled.delta(weight))
        assert np.abs(got - multiplier * expected).max() <= 1e-12 * np.abs(expected).max()
        assert (scaled.bias is None) == (layer.bias is None)
        if scaled.bias is not None and layer.bias is not None:
            bias = torch.zeros(target.shape[:1], dtype=torch.float64)
            assert torch.allclose(scaled.bias.delta(bias), multiplier * layer.bias.delta(bias), rtol=1e-12)


@every_case
def test_cast_stores_every_real_tensor_so(case: Case) -> None:
    layer = LayerAdapter.from_tensors(case.tensors)
    for dtype in FACTOR_DTYPES:
        direct = factors(LayerAdapter.from_tensors(case.stored(dtype)))
        assert all(same_bits(value, direct[name]) for name, value in factors(layer.cast(dtype)).items())


@every_target
def test_the_shape_that_tensors_tell_is_the_weights(target: Target) -> None:
    told = adapter(target).weight_shape
    own = [
        (suffix, value)
        for suffix, value in target.case.tensors.items()
        if "hada" in suffix or "lokr" in suffix
    ]
    kernel = any(value.dim() > 2 or suffix == "lokr_w2" for suffix, value in own)
    tells = not TELL_THE_SHAPE.isdisjoint(target.algos)
    assert (told is not None) == (tells or (kernel and not TELL_A_KERNEL.isdisjoint(target.algos)))
    assert told is None or without_ones(told) == without_ones(target.shape)


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` as a Linear and a 1×1 convolution share it: a file of one may be used on the other."""
    while shape[-1:] == (1,):
        shape = shape[:-1]
    return shape


@every_target
def test_the_size_that_tensors_tell_is_the_weights(target: Target) -> None:
    layer = adapter(target)
    size = (target.shape[0], int(torch.Size(target.shape[1:]).numel()))
    for part in layer.weight_components:
        assert all(own in (None, found) for own, found in zip(part.matrix_shape, size, strict=True))
    whole = any(None not in part.matrix_shape for part in layer.weight_components)
    assert layer.matrix_shape == (size if whole else None)


# ---- the multiplier -----------------------------------------------------------------------------------


@every_target
def test_weight_plus_multiplier_times_delta(target: Target) -> None:
    layer = adapter(target)
    for dtype in WEIGHT_DTYPES:
        start = target.weight(dtype)
        base = to_numpy(start)
        delta = expected_delta(target.algos, target.case.tensors, start)
        for multiplier in MULTIPLIERS:
            weight = start.clone()
            assert layer.add_to_(weight, multiplier) is weight
            assert weight.dtype == dtype
            change = multiplier * delta
            check_rounded_once(weight, base + change, tolerance(target.case, dtype, base, change))


@every_target
def test_multiplier_0_leaves_every_bit(target: Target) -> None:
    layer = adapter(target)
    for dtype in WEIGHT_DTYPES:
        weight = target.weight(dtype)
        flat = weight.view(-1)
        flat[0], flat[1], flat[2] = float("nan"), -0.0, 0.0
        before = weight.clone()
        for zero in (0.0, -0.0, 0):
            assert layer.add_to_(weight, zero) is weight
        assert same_bits(weight, before), dtype


@every_target
def test_fused_update_is_the_delta_that_is_formed(target: Target) -> None:
    # Both sides are the library's, so this holds without any oracle; the bound is that of rounding alone.
    layer = adapter(target)
    for dtype in (torch.float64, torch.float32):
        start = target.weight(dtype)
        formed = layer.delta(start)
        for multiplier in MULTIPLIERS:
            fused = to_numpy(layer.add_to_(start.clone(), multiplier))
            change = to_numpy(formed) * multiplier
            tau = tolerance(target.case, dtype, to_numpy(start), change)
            assert (np.abs(fused - to_numpy(start) - change) <= 2 * tau).all()


@every_target
def test_preparing_changes_nothing(target: Target) -> None:
    layer, start = adapter(target), target.weight(torch.float64)
    prepared = layer.structure(start.shape, torch.float32, lambda: start)
    expected = to_numpy(layer.delta(start))
    flat = Structure.from_values(iter(prepared.to_values()))
    matrix = start.reshape(start.shape[0], -1)
    for other in (prepared, flat):
        got = to_numpy(other.ready(start.device, torch.float64).delta(matrix)).reshape(expected.shape)
        assert np.abs(got - expected).max() <= PREPARED * np.abs(expected).max()


@every_target
def test_the_prepared_form_updates_weights_of_every_dtype(target: Target) -> None:
    # It is what changes a model: prepared once from its weight, kept in float32.
    for dtype in WEIGHT_DTYPES:
        start = target.weight(dtype)
        prepared = adapter(target).structure(start.shape, base=lambda start=start: start)
        base = to_numpy(start)
        change = 0.7 * expected_delta(target.algos, target.case.tensors, start)
        tau = tolerance(target.case, dtype, base, change)
        tau = tau + PREPARED * np.abs(change).max(initial=0.0)
        check_rounded_once(apply_(start.clone(), [(prepared, 0.7)]), base + change, tau)


# ---- where blocks of rows end -------------------------------------------------------------------------


@every_target
def test_any_size_of_block(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = int(torch.Size(target.shape[1:]).numel())
    layer = adapter(target)
    for dtype in (torch.float32, torch.bfloat16):
        start = target.weight(dtype)
        base = to_numpy(start)
        change = 0.7 * expected_delta(target.algos, target.case.tensors, start)
        tau = tolerance(target.case, dtype, base, change)
        for wanted, threads in ((1, 1), (2, 1), (5, 1), (1, 2), (1, 3)):
            set_blocks(monkeypatch, wanted * columns * 4, threads)
            assert rows_per_block(columns, torch.float32, torch.device("cpu")) == wanted * threads
            check_rounded_once(layer.add_to_(start.clone(), 0.7), base + change, tau)


# ---- strides ------------------------------------------------------------------------------------------


def layouts(start: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, storage, view): ``view`` holds the numbers of ``start`` and lies somewhere in ``storage``."""

    def inside(storage: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        view.copy_(start)
        return storage, view

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float32).to(start.dtype)

    o, *rest = start.shape
    storage = noise(o + 5, *rest)
    yield "narrowed on dim 0", *inside(storage, storage.narrow(0, 2, o))
    storage = noise(2 * o, *rest)
    yield "every second row", *inside(storage, storage[::2])
    storage = noise(*rest[::-1], o)
    yield "transposed", *inside(storage, storage.permute(*reversed(range(start.dim()))))
    if rest:
        storage = noise(o, rest[0] + 4, *rest[1:])
        yield "narrowed on dim 1", *inside(storage, storage.narrow(1, 3, rest[0]))
        storage = noise(o, *rest[:-1], 2 * rest[-1])
        yield "every second column", *inside(storage, storage[..., 1::2])
    for dim, order in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if start.dim() == dim:
            storage = noise(*start.shape).to(memory_format=order)
            yield "channels last", *inside(storage, storage)


@every_target
def test_any_strides(target: Target) -> None:
    layer = adapter(target)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        start = target.weight(dtype)
        delta = expected_delta(target.algos, target.case.tensors, start)
        base, change = to_numpy(start), -0.5 * delta
        tau = tolerance(target.case, dtype, base, change)
        for name, storage, view in layouts(start):
            outside = storage.clone()
            strides = view.stride()
            layer.add_to_(view, -0.5)
            assert view.stride() == strides, name
            check_rounded_once(view, base + change, tau)
            # Put back what was changed: then nothing else may differ.
            view.copy_(start)
            assert same_bits(storage, outside), f"{name}: wrote outside of the view"
            check_delta(layer.delta(view), delta, target.case, dtype)
