"""``apply_``: stacks, transformed weights, and the memory that an update takes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from oracles import check_rounded_once, expected_delta, round_once, same_bits, to_numpy, tolerance
from row_blocks import set_blocks
from samples import CASES, Case, Target
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lycoris_algos import LayerAdapter, ShapeMismatchError, apply_


def sample(name: str) -> Target:
    case = next(case for case in CASES if case.name == name)
    return next(case.targets())


def layer_of(case: Case) -> LayerAdapter:
    return LayerAdapter.from_tensors(case.tensors)


# ---- stacks -------------------------------------------------------------------------------------------

STACKS = (
    ("lora-linear", "loha-linear", "lokr-linear"),
    ("lora-linear", "full-linear", "lokr-factor_2"),
    ("lora-conv2d_3x3-tucker", "loha-conv2d_3x3", "lokr+full-conv2d_3x3"),
    ("norm-weight", "norm+norm_bias-both", "norm-weight"),
)


def stacked(names: tuple[str, ...]) -> tuple[list[Target], list[float]]:
    return [sample(name) for name in names], [0.8, -0.6, 1.5][: len(names)]


def replayed(base: np.ndarray, members: list[Target], multipliers: list[float]) -> np.ndarray:
    """The stack in float64, each member on what the ones before it made of the weight."""
    for member, multiplier in zip(members, multipliers, strict=True):
        delta = expected_delta(member.algos, member.case.tensors, torch.from_numpy(base))
        base = base + multiplier * delta
    return base


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("names", STACKS, ids="+".join)
def test_a_stack_is_rounded_once(names: tuple[str, ...], dtype: torch.dtype) -> None:
    members, multipliers = stacked(names)
    start = members[0].weight(dtype)
    exact = replayed(to_numpy(start), members, multipliers)
    tau = sum(
        tolerance(m.case, dtype, np.zeros(1), v * expected_delta(m.algos, m.case.tensors, start))
        for m, v in zip(members, multipliers, strict=True)
    )
    tau = tau + 3 * 2.0**-23 * (np.abs(exact) + np.abs(to_numpy(start)))
    weight = start.clone()
    entries = [(layer_of(m.case), v) for m, v in zip(members, multipliers, strict=True)]
    assert apply_(weight, entries) is weight
    check_rounded_once(weight, exact, tau)


def test_rounding_after_each_member_would_be_seen() -> None:
    members, multipliers = stacked(STACKS[0])
    start = members[0].weight(torch.bfloat16)
    exact = replayed(to_numpy(start), members, multipliers)
    weight = start.clone()
    for member, multiplier in zip(members, multipliers, strict=True):
        layer_of(member.case).add_to_(weight, multiplier)
    assert (to_numpy(weight) != round_once(exact, torch.bfloat16)).mean() > 0.05
    with pytest.raises(AssertionError):
        check_rounded_once(weight, exact, np.full(exact.shape, 1e-6))


@pytest.mark.parametrize("names", STACKS[:3], ids="+".join)
def test_additive_members_may_stand_in_any_order(names: tuple[str, ...]) -> None:
    members, multipliers = stacked(names)
    entries = [(layer_of(m.case), v) for m, v in zip(members, multipliers, strict=True)]
    start = members[0].weight(torch.float64)
    expected = to_numpy(apply_(start.clone(), entries))
    for order in permutations(entries):
        assert np.abs(to_numpy(apply_(start.clone(), order)) - expected).max() < 1e-12


def test_members_with_multiplier_0_are_skipped_and_never_looked_at() -> None:
    fitting, misfit = sample("lora-linear"), sample("lora-conv2d_3x3")
    weight = fitting.weight()
    apply_(weight, [(layer_of(misfit.case), 0.0), (layer_of(fitting.case), 1.0)])
    assert same_bits(weight, layer_of(fitting.case).add_to_(fitting.weight(), 1.0))
    once = layer_of(fitting.case).add_to_(fitting.weight(), 0.7)
    entries = [(layer_of(fitting.case), multiplier) for multiplier in (0.0, 0.7, 0.0)]
    assert same_bits(apply_(fitting.weight(), entries), once)
    assert same_bits(apply_(fitting.weight(), []), fitting.weight())


def test_a_misfit_in_a_stack_leaves_the_weight_untouched() -> None:
    good, bad = sample("lora-linear"), sample("lora-conv2d_3x3")
    for dtype in (torch.float32, torch.bfloat16):
        weight = good.weight(dtype)
        with pytest.raises(ShapeMismatchError, match="12×72"):
            apply_(weight, [(layer_of(good.case), 1.0), (layer_of(bad.case), 1.0)])
        assert same_bits(weight, good.weight(dtype))


# ---- transformed weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "transform",
    [lambda delta: delta.flip(0), lambda delta: torch.cat(delta.chunk(2)[::-1]), lambda delta: delta * 2],
    ids=["flip", "swap halves", "double"],
)
def test_a_transform_is_put_around_each_delta(
    transform: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    members, multipliers = stacked(STACKS[0])
    start = members[0].weight(dtype)
    exact, tau = to_numpy(start), 0
    for member, multiplier in zip(members, multipliers, strict=True):
        delta = multiplier * expected_delta(member.algos, member.case.tensors, start)
        exact = exact + to_numpy(transform(torch.from_numpy(delta)))
        tau = tau + 2 * tolerance(member.case, dtype, exact, np.abs(delta).max())
    entries = [(layer_of(m.case), v) for m, v in zip(members, multipliers, strict=True)]
    weight = start.clone()
    assert apply_(weight, entries, transform=transform) is weight
    check_rounded_once(weight, exact, tau)


def test_a_transform_sees_float32_and_is_not_called_for_nothing() -> None:
    target = sample("lokr-linear")
    seen: list[torch.dtype] = []

    def transform(delta: Tensor) -> Tensor:
        seen.append(delta.dtype)
        return delta

    weight = apply_(target.weight(torch.float16), [(layer_of(target.case), 0.0)], transform=transform)
    assert same_bits(weight, target.weight(torch.float16))
    assert seen == []
    apply_(weight, [(layer_of(target.case), 1.0)], transform=transform)
    assert seen == [torch.float32]


def scaled_rows(factors: Tensor) -> LayerAdapter:
    """(IA)³ on the outputs, the simplest change that depends on the weight: ΔW[o] = W[o]·w[o]."""
    return LayerAdapter.from_tensors({"weight": factors, "on_input": torch.tensor(0.0)})


def test_a_change_that_depends_on_the_weight_sees_it_in_its_own_order() -> None:
    lora, factors = sample("lora-linear"), torch.linspace(-1, 1, 24)
    start = lora.weight(torch.float64)
    stored = start.flip(0)  # the host keeps the rows the other way round
    entries = [(layer_of(lora.case), 0.8), (scaled_rows(factors), 0.5)]
    expected = apply_(start.clone(), entries).flip(0)
    weight = stored.clone()
    got = apply_(weight, entries, transform=lambda delta: delta.flip(0), inverse=lambda w: w.flip(0))
    assert got is weight
    assert np.abs(to_numpy(got) - to_numpy(expected)).max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_such_a_change_is_refused_where_the_order_is_unknown(dtype: torch.dtype) -> None:
    lora = sample("lora-linear")
    for entries in (
        [(scaled_rows(torch.ones(24)), 1.0)],
        [(layer_of(lora.case), 1.0), (scaled_rows(torch.ones(24)), 1.0)],
    ):
        weight = lora.weight(dtype)
        with pytest.raises(TypeError, match=r"\(IA\)³ needs the weight in the order it was trained in"):
            apply_(weight, entries, transform=lambda delta: delta)
        assert same_bits(weight, lora.weight(dtype)), "the refusal comes after a change"
    weight = lora.weight(dtype)
    apply_(weight, [(scaled_rows(torch.ones(24)), 0.0)], transform=lambda delta: delta)
    assert same_bits(weight, lora.weight(dtype))


def test_each_member_of_a_stack_sees_what_the_one_before_made() -> None:
    lora, factors = sample("lora-linear"), torch.linspace(-1, 1, 24)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        start = lora.weight(dtype)
        base = to_numpy(start)
        base = base + 0.8 * expected_delta(lora.algos, lora.case.tensors, start)
        exact = base + 0.5 * base * to_numpy(factors)[:, None]
        weight = apply_(start.clone(), [(layer_of(lora.case), 0.8), (scaled_rows(factors), 0.5)])
        check_rounded_once(weight, exact, 2 * tolerance(lora.case, dtype, exact, exact))


# ---- edges --------------------------------------------------------------------------------------------


def test_a_layer_with_a_bias_only_leaves_the_weight() -> None:
    layer = LayerAdapter.from_tensors({"diff_b": torch.ones(6)})
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weight = torch.randn(6, 4).to(dtype)
        before = weight.clone()
        delta = layer.delta(weight)
        assert delta.shape == weight.shape
        assert delta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not delta.any()
        assert same_bits(layer.add_to_(weight, 1.0), before)
    assert layer.delta((6, 4)).shape == (6, 4)


def test_a_scalar_can_be_changed() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        scalar = torch.tensor(1.5, dtype=dtype)
        LayerAdapter.from_tensors({"diff": torch.tensor(0.25)}).add_to_(scalar, 2.0)
        assert scalar.shape == ()
        assert float(scalar) == 2.0
        delta = LayerAdapter.from_tensors({"diff": torch.tensor(0.25)}).delta(scalar)
        assert delta.shape == ()
        assert float(delta) == 0.25


def test_nan_in_a_weight_stays_where_it_is() -> None:
    # A weight with a damaged element must not spoil its neighbours through a clever kernel.
    target = sample("lokr-linear")
    weight = target.weight(torch.bfloat16)
    weight[3, 5] = float("nan")
    layer_of(target.case).add_to_(weight, 1.0)
    assert weight.isnan().sum() == 1


# ---- memory -------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that is made, as opposed to being a view or changed in place."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        # Storages are kept alive: the address of one that was freed could be given out again.
        self._known = {tensor.untyped_storage().data_ptr(): tensor for tensor in known}
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self._known[tensor.untyped_storage().data_ptr()] = tensor
                self.sizes.append(tensor.nbytes)
        return result


def test_the_recorder_of_allocations_sees_what_it_must() -> None:
    a, b = torch.randn(8, 4), torch.randn(4, 8)
    with Allocations(a, b) as seen:
        a.add_(1).view(-1)[3:].mul_(2)
    assert seen.sizes == []
    with Allocations(a, b) as seen:
        (a @ b).t().contiguous()
    assert seen.sizes == [256, 256]


O, I, R = 512, 768, 4  # noqa: E741 - the formulas' names
QUARTER = O * I  # in bytes, of the weight in float32
LARGE: dict[str, dict[str, Tensor]] = {
    "lora": {"lora_up.weight": torch.ones(O, R), "lora_down.weight": torch.ones(R, I)},
    "lokr w2 low-rank": {
        "lokr_w1": torch.ones(4, 4),
        "lokr_w2_a": torch.ones(O // 4, R),
        "lokr_w2_b": torch.ones(R, I // 4),
    },
    "lokr both low-rank": {
        "lokr_w1_a": torch.ones(16, R),
        "lokr_w1_b": torch.ones(R, 16),
        "lokr_w2_a": torch.ones(O // 16, R),
        "lokr_w2_b": torch.ones(R, I // 16),
    },
    "lokr whole": {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(O // 8, I // 8)},
    "lokr factor 2": {
        "lokr_w1": torch.ones(2, 2),
        "lokr_w2_a": torch.ones(O // 2, R),
        "lokr_w2_b": torch.ones(R, I // 2),
    },
    "lokr factor 1": {
        "lokr_w1": torch.ones(1, 1),
        "lokr_w2_a": torch.ones(O, R),
        "lokr_w2_b": torch.ones(R, I),
    },
    "loha": {
        "hada_w1_a": torch.ones(O, R),
        "hada_w1_b": torch.ones(R, I),
        "hada_w2_a": torch.ones(O, R),
        "hada_w2_b": torch.ones(R, I),
    },
    "loha of a higher rank": {
        "hada_w1_a": torch.ones(O, 2 * R),
        "hada_w1_b": torch.ones(2 * R, I),
        "hada_w2_a": torch.ones(O, 2 * R),
        "hada_w2_b": torch.ones(2 * R, I),
    },
    "full": {"diff": torch.ones(O, I)},
}


def largest(tensors: dict[str, Tensor], weight: Tensor) -> int:
    layer = LayerAdapter.from_tensors(tensors)
    with Allocations(weight, *tensors.values()) as seen:
        layer.add_to_(weight, 0.5)
    return max(seen.sizes, default=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in LARGE if name not in ("loha of a higher rank", "full")])
def test_no_temporary_of_the_weights_size(name: str, stored: torch.dtype) -> None:
    weight = torch.zeros(O, I)
    tensors = {suffix: value.to(stored) for suffix, value in LARGE[name].items()}
    assert largest(tensors, weight) < QUARTER
    assert weight.count_nonzero() == weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_scratch_memory_stays_within_a_block(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_blocks(monkeypatch, 16 * I * 4)
    weight = torch.zeros(O, I, dtype=dtype)
    tensors = {suffix: value.to(torch.float16) for suffix, value in LARGE[name].items()}
    assert largest(tensors, weight) < QUARTER
    assert weight.count_nonzero() == weight.numel()


def test_a_change_stored_like_the_weight_is_added_without_a_copy() -> None:
    weight = torch.zeros(O, I)
    assert largest({"diff": torch.ones(O, I)}, weight) == 0
