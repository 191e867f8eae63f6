"""Fewer ranks than a file has: network/rank.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from lycoris_algos import NoRankError, from_tensors, with_rank

SHAPE = (24, 16)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def delta(tensors: dict[str, Tensor], rank: int, metadata: dict[str, str] | None = None) -> np.ndarray:
    named = {f"lora_unet_x.{suffix}": value for suffix, value in tensors.items()}
    (layer,) = with_rank(from_tensors(named, metadata), rank).values()
    shape = (12, 8, 3, 3) if any(value.dim() == 4 for value in tensors.values()) else SHAPE
    return layer.delta(torch.zeros(shape, dtype=torch.float64)).numpy().reshape(shape[0], -1)


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


LORA = {"lora_up.weight": draw(24, 6), "lora_down.weight": draw(6, 16), "alpha": torch.tensor(3.0)}
TUCKER = {
    "lora_up.weight": draw(12, 6, 1, 1),
    "lora_mid.weight": draw(6, 6, 3, 3),
    "lora_down.weight": draw(6, 8, 1, 1),
    "alpha": torch.tensor(3.0),
}
LOKR = {"lokr_w1": draw(4, 4), "lokr_w2_a": draw(6, 3), "lokr_w2_b": draw(3, 4), "alpha": torch.tensor(2.0)}


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("tensors", [LORA, TUCKER], ids=["plain", "tucker"])
def test_a_lora_keeps_its_best_ranks(tensors: dict[str, Tensor], rank: int) -> None:
    whole = delta(tensors, 0)
    assert np.allclose(delta(tensors, rank), best(whole, rank), atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("rank", [0, 6, 7, 100])
def test_nothing_is_cut_where_there_are_no_more_ranks(rank: int) -> None:
    adapters = from_tensors({f"lora_unet_x.{suffix}": value for suffix, value in LORA.items()})
    assert with_rank(adapters, rank) is adapters


@pytest.mark.parametrize("rank", [1, 2])
def test_a_lokr_keeps_the_best_ranks_of_its_low_rank_factor(rank: int) -> None:
    w2 = (LOKR["lokr_w2_a"] @ LOKR["lokr_w2_b"]).double().numpy()
    expected = 2.0 / 3 * np.kron(LOKR["lokr_w1"].double().numpy(), best(w2, rank))
    assert np.allclose(delta(LOKR, rank), expected, atol=1e-5 * np.abs(expected).max())


def test_both_factors_of_a_lokr_are_cut() -> None:
    tensors = {key: value for key, value in LOKR.items() if key != "lokr_w1"}
    tensors |= {"lokr_w1_a": draw(4, 3), "lokr_w1_b": draw(3, 4)}
    first = best((tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]).double().numpy(), 1)
    second = best((LOKR["lokr_w2_a"] @ LOKR["lokr_w2_b"]).double().numpy(), 1)
    expected = 2.0 / 3 * np.kron(first, second)
    assert np.allclose(delta(tensors, 1), expected, atol=1e-5 * np.abs(expected).max())


def test_the_first_ranks_of_a_dylora_are_an_adapter_of_their_own() -> None:
    up, down = LORA["lora_up.weight"].double().numpy(), LORA["lora_down.weight"].double().numpy()
    first = up[:, :4] @ down[:4]
    kohya = {"ss_network_module": "networks.dylora"}
    assert np.allclose(delta(LORA, 4, kohya), 3.0 / 6 * (6 / 4) ** 0.5 * first, rtol=1e-5)
    args = {"algo": "dylora", "block_size": "2"}
    lycoris = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(args)}
    assert np.allclose(delta(LORA, 4, lycoris), 3.0 * 2 / 4 * first, rtol=1e-5)


def test_another_algorithm_says_what_to_do() -> None:
    loha = {
        "hada_w1_a": draw(24, 3),
        "hada_w1_b": draw(3, 16),
        "hada_w2_a": draw(24, 3),
        "hada_w2_b": draw(3, 16),
    }
    with pytest.raises(NoRankError, match=r"file 'adapter', layer 'lora_unet_x': LoHa .*CombineLyCORIS"):
        delta(loha, 2)


def test_what_has_no_rank_stays() -> None:
    stored = {f"lora_unet_x.{suffix}": value for suffix, value in LORA.items()}
    adapters = with_rank(from_tensors({**stored, "lora_unet_norm.w_norm": draw(8)}), 2)
    assert torch.equal(adapters["lora_unet_norm"].delta((8,)), draw(8))
    assert adapters.notes == ("1 of 2 layers cut to rank 2: the best ones by singular value",)
