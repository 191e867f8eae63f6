"""Rows of a layer as an adapter of their own, and several such as one: exactly, or not at all."""

from __future__ import annotations

import itertools

import pytest
import torch
from laws import every_case
from samples import CASES, Case
from torch import Tensor

from lycoris_algos import LayerAdapter
from lycoris_algos.adapters import of_row_parts, row_part

#: What can be stored as rows of itself, a DoRA only where its norms are those of rows; and what of it as one.
CUT = {"lora", "loha", "full", "full_bias", "lora_bias", "norm", "norm_bias", "dora", "dora_vector"}
JOINED = CUT - {"loha"}


def weight_of(case: Case) -> Tensor:
    return next(case.targets()).weight(torch.float64)


def changes(layer: LayerAdapter, weight: Tensor) -> list[Tensor | None]:
    """What ``layer`` adds to ``weight`` and to a bias."""
    bias = None if layer.bias is None else layer.bias.delta(weight.new_zeros(weight.shape[:1]))
    if layer.magnitude is None and not layer.weight_components:
        return [None, bias]
    return [layer.delta(weight), bias]


def same(got: list[Tensor | None], wanted: list[Tensor | None], rows: slice = slice(None)) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.allclose(one, other[rows], rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def cut(layer: LayerAdapter, *ends: int) -> list[tuple[int, LayerAdapter]]:
    parts = [(start, row_part(layer, start, stop - start)) for start, stop in itertools.pairwise(ends)]
    return [(start, part) for start, part in parts if part is not None]


@every_case
def test_rows_are_cut_exactly_or_not_at_all(case: Case) -> None:
    layer, weight = LayerAdapter.from_tensors(case.tensors), weight_of(case)
    total = weight.shape[0]
    of_rows = layer.magnitude is None or not layer.magnitude.over_rows
    can = {*case.algos, *case.bias_algos} <= CUT and of_rows
    for start, stop in ((0, total // 2), (total // 2, total), (1, 2), (0, total)):
        own = row_part(layer, start, stop - start)
        assert (own is not None) == can
        if own is not None:
            assert [part.algo for part in own.components()] == [part.algo for part in layer.components()]
            same(changes(own, weight[start:stop]), changes(layer, weight), slice(start, stop))


@every_case
def test_rows_are_laid_below_each_other_exactly_or_not_at_all(case: Case) -> None:
    layer, weight = LayerAdapter.from_tensors(case.tensors), weight_of(case)
    total = weight.shape[0]
    parts = cut(layer, 0, 2, 4, total) if total > 6 else cut(layer, 0, 2, total)
    if not parts:
        return
    can = {*case.algos, *case.bias_algos} <= JOINED and "lora_mid.weight" not in case.tensors
    for order in (parts, parts[::-1]):
        whole = of_row_parts(order, total)
        assert (whole is not None) == can
        if whole is not None:
            same(changes(whole, weight), changes(layer, weight))
    if not can:
        return
    # Rows of none are left alone, and those of two change twice; a norm is of every row, and there is one.
    for some, times in ((parts[1:], 1), ([*parts[1:], *parts[1:]], 2)):
        whole = of_row_parts(some, total)
        assert (whole is None) == (layer.magnitude is not None)
        if whole is not None:
            wanted = [None if change is None else change * times for change in changes(layer, weight)]
            for change in wanted:
                if change is not None:
                    change[:2] = 0
            same(changes(whole, weight), wanted)


def test_parts_of_other_kinds_scales_and_dtypes() -> None:
    by_name = {case.name: case for case in CASES}
    lora, loha, full = (by_name[f"{algo}-linear"].tensors for algo in ("lora", "loha", "full"))
    weight = torch.zeros(48, 16, dtype=torch.float64)
    first, other, dense = map(LayerAdapter.from_tensors, (lora, loha, full))
    assert of_row_parts([(0, first), (24, other)], 48) is None
    both = of_row_parts([(0, first), (24, dense)], 48)
    assert both is not None
    assert [part.algo for part in both.components()] == ["lora", "full"]
    narrow = {suffix: value.to(torch.bfloat16) for suffix, value in lora.items() if suffix != "alpha"}
    second = LayerAdapter.from_tensors({**narrow, "alpha": torch.tensor(3.0)})
    whole = of_row_parts([(0, first), (24, second)], 48)
    assert whole is not None
    wanted = torch.cat((first.delta(weight[:24]), second.delta(weight[24:])))
    same([whole.delta(weight)], [wanted])
    # What begins alike keeps one ``down``; the rest stands beside each other.
    shared = of_row_parts(cut(first, 0, 6, 24), 24)
    assert shared is not None
    for layer, rank in ((shared, 4), (whole, 8)):
        assert layer.algorithm is not None
        assert layer.algorithm.rank == rank


@pytest.mark.parametrize("order", [1, -1])
def test_kernels_of_other_sizes_are_not_laid_below_each_other(order: int) -> None:
    layers = [LayerAdapter.from_tensors({"diff": torch.ones(4, 3, *kernel)}) for kernel in ((), (3, 3))]
    layers += [LayerAdapter.from_tensors({"diff": torch.tensor(1.0)})]
    for one, other in ((0, 1), (0, 2)):
        pair = [(0, layers[one]), (4, layers[other])][::order]
        assert of_row_parts(pair, 8) is None
