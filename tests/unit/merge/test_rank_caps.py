"""A largest rank for the rules that find one, and a rank of its own for convolutions."""

from __future__ import annotations

import json

import pytest
import torch
from combine_runs import combine
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet
from lycoris_algos.errors import BadValueError
from lycoris_algos.network import StackEntry
from lycoris_algos.network.recipe import RECIPE
from lycoris_algos.ops.ranks import RankKind, RankRule, choose

LINEAR, CONV, POINT = "lora_unet_linear", "lora_unet_conv", "lora_unet_point"
RANK = 12


def mixed() -> AdapterSet:
    """LoRAs of rank 12 of a Linear, a 3×3 convolution and a 1×1 one, whose singular values are alike."""
    draw = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for layer, kernel in ((LINEAR, ()), (CONV, (3, 3)), (POINT, (1, 1))):
        up = torch.linalg.qr(torch.randn(32, RANK, generator=draw))[0]
        inputs = 24 * torch.Size(kernel).numel()
        down = torch.linalg.qr(torch.randn(inputs, RANK, generator=draw))[0].T
        tensors[f"{layer}.lora_up.weight"] = up.reshape(32, RANK, *(1 for _ in kernel))
        tensors[f"{layer}.lora_down.weight"] = down.reshape(RANK, 24, *kernel)
    return lycoris_algos.from_tensors(tensors)


def ranks(rule: RankRule, output: str = "same") -> dict[str, int | None]:
    result = combine([StackEntry(mixed())], rank=rule, output=output)
    return {o.name: o.rank for o in result.outcomes}


@pytest.mark.parametrize(
    "rule",
    [
        (RankKind.ENERGY, 1.0),
        (RankKind.SV_RATIO, 100.0),
        (RankKind.SV_FRO, 1.0),
        (RankKind.SV_CUMULATIVE, 1.0),
        (RankKind.BUDGET, 10.0),
    ],
    ids=lambda rule: rule[0].name,
)
def test_what_a_rule_finds_is_capped(rule: tuple[RankKind, float]) -> None:
    assert set(ranks(RankRule(*rule)).values()) == {RANK}
    assert set(ranks(RankRule(*rule, most=5)).values()) == {5}
    assert set(ranks(RankRule(*rule, most=50)).values()) == {RANK}
    assert ranks(RankRule(*rule, most=5, convolution=3)) == {LINEAR: 5, CONV: 3, POINT: 5}
    assert ranks(RankRule(*rule, convolution=3)) == {LINEAR: RANK, CONV: 3, POINT: RANK}


def test_a_fixed_rank_and_one_for_convolutions() -> None:
    assert ranks(RankRule(RankKind.FIXED, 4, convolution=2)) == {LINEAR: 4, CONV: 2, POINT: 4}
    # What is small enough already stays as it is, by the number of its own kind.
    assert ranks(RankRule(RankKind.FIXED, 12, convolution=2)) == {LINEAR: 12, CONV: 2, POINT: 12}
    assert ranks(RankRule(RankKind.FIXED, 4, convolution=12)) == {LINEAR: 4, CONV: 12, POINT: 4}


def test_a_loha_keeps_below_the_size_of_that_lora() -> None:
    found = ranks(RankRule(RankKind.ENERGY, 0.99, most=6), "loha")
    assert all(rank is not None and rank <= 3 for rank in found.values())


def test_never_more_than_there_are() -> None:
    assert choose(torch.tensor([3.0, 2.0, 1.0]), RankRule(RankKind.ENERGY, 1.0, most=2)) == 2
    assert choose(torch.zeros(3), RankRule(RankKind.ENERGY, 1.0, most=2)) == 1


def test_the_recipe_and_the_report_name_them() -> None:
    result = combine([StackEntry(mixed())], rank=RankRule(RankKind.ENERGY, 0.9, 5, 3))
    recipe = json.loads(result.adapters.metadata[RECIPE])
    assert (recipe["largest_rank"], recipe["convolution_rank"]) == (5, 3)
    assert "energy 0.9, at most 5, convolutions at most 3" in result.report()


@pytest.mark.parametrize(
    "rule",
    [
        RankRule(most=4),
        RankRule(convolution=4),
        RankRule(RankKind.FIXED, 4, most=2),
        RankRule(RankKind.ENERGY, 0.5, most=-1),
        RankRule(RankKind.ENERGY, 0.5, convolution=-1),
        RankRule(RankKind.BUDGET, float("nan")),
        RankRule(RankKind.BUDGET, float("inf")),
        RankRule(RankKind.FIXED, float("inf")),
        RankRule(RankKind.ENERGY, float("nan")),
        RankRule(RankKind.SV_RATIO, float("nan")),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(rule: RankRule) -> None:
    with pytest.raises(BadValueError):
        combine([StackEntry(mixed())], rank=rule)
