"""What a trainer's metadata says about a layer's tensors: the form that its training used."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lycoris_algos import LayerAdapter
from lycoris_algos.adapters import Algorithm, TrainingFacts


def facts(
    algo: str = "", module: str = "", rank: float | None = None, raw: bool = False, **args: str
) -> TrainingFacts:
    return TrainingFacts(algo, module, rank, args, raw)


def algorithm(**tensors: Tensor) -> Algorithm:
    named = {suffix.replace("__", "."): value for suffix, value in tensors.items()}
    found = LayerAdapter.from_tensors(named).algorithm
    assert found is not None
    return found


def trained(own: Algorithm, told: TrainingFacts, name: str = "lora_unet_x") -> list[Algorithm]:
    """What each correction made of ``own``; every one says what it did."""
    steps = list(own.as_trained(name, told))
    assert all(len(note) > 20 for _, note in steps)
    return [form for form, _ in steps]


def alpha_of(own: Algorithm) -> float:
    alpha: Any = getattr(own, "alpha", None)
    return float(alpha)


def lora(alpha: float | None = 2.0, rank: int = 4) -> Algorithm:
    tensors = {"lora_up__weight": torch.ones(24, rank), "lora_down__weight": torch.ones(rank, 16)}
    return algorithm(**tensors, **({} if alpha is None else {"alpha": torch.tensor(alpha)}))


def loha(rank: int = 4) -> Algorithm:
    halves = {f"hada_w{n}_a": torch.ones(24, rank) for n in (1, 2)}
    halves |= {f"hada_w{n}_b": torch.ones(rank, 16) for n in (1, 2)}
    return algorithm(**halves, alpha=torch.tensor(2.0))


def lokr(alpha: float = 2.0, **more: Tensor) -> Algorithm:
    second = more or {"lokr_w2_a": torch.ones(6, 4), "lokr_w2_b": torch.ones(4, 4)}
    return algorithm(lokr_w1=torch.ones(4, 4), alpha=torch.tensor(alpha), **second)


def glora() -> Algorithm:
    return algorithm(
        a1__weight=torch.ones(16, 4),
        a2__weight=torch.ones(4, 16),
        b1__weight=torch.ones(24, 4),
        b2__weight=torch.ones(4, 16),
        alpha=torch.tensor(2.0),
    )


# ---- rs_lora --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lora, loha, lokr], ids=lambda make: make.__name__)
def test_a_raw_alpha_is_multiplied_by_the_root_of_the_rank(make: Any) -> None:
    for flag in ("True", "true ", "1", "yes"):
        (form,) = trained(make(), facts(raw=True, rs_lora=flag))
        assert alpha_of(form) == 2.0 * math.sqrt(4)
    assert trained(make(), facts(raw=False, rs_lora="True")) == []
    for flag in ("False", "0", "no", ""):
        assert trained(make(), facts(raw=True, rs_lora=flag)) == []
    assert trained(make(), facts(raw=True)) == []


def test_the_alpha_of_a_glora_is_never_stored_with_the_root() -> None:
    for raw in (True, False):
        (form,) = trained(glora(), facts(raw=raw, rs_lora="True"))
        assert alpha_of(form) == 4.0
    assert trained(glora(), facts(raw=True)) == []


def test_without_an_alpha_there_is_nothing_to_multiply() -> None:
    assert trained(lora(None), facts(raw=True, rs_lora="True")) == []


@pytest.mark.parametrize("rank", [2, 4, 9])
def test_a_lokr_of_whole_matrices_is_scaled_by_the_root_of_the_rank_that_its_alpha_tells(rank: int) -> None:
    whole = {"lokr_w2": torch.ones(6, 4)}
    for sign in (1, -1):
        (form,) = trained(lokr(sign * rank**1.5, **whole), facts(rs_lora="True"))
        change = form.structure((24, 16)).delta()
        assert torch.allclose(change, torch.full((24, 16), math.sqrt(rank)), rtol=1e-6)
        assert trained(form, facts(rs_lora="True")) == []  # its scale is fixed then
    assert trained(lokr(rank**1.5, **whole), facts()) == []
    bare = algorithm(lokr_w1=torch.ones(4, 4), **whole)
    assert trained(bare, facts(rs_lora="True")) == []


# ---- LoRA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "times"), [(None, 4), ("4", 4), ("2", 2), ("8.0", 8)])
def test_the_alpha_of_a_dylora_counts_blocks(block: str | None, times: int) -> None:
    args = {} if block is None else {"block_size": block}
    (form,) = trained(lora(), facts("dylora", **args))
    assert alpha_of(form) == 2.0 * times


@pytest.mark.parametrize("block", ["1", "0", "-4", "four", "inf", "nan"])
def test_a_block_of_one_rank_or_of_none_changes_nothing(block: str) -> None:
    assert trained(lora(), facts("dylora", block_size=block)) == []


def test_only_a_dylora_with_an_alpha_counts_blocks() -> None:
    assert trained(lora(), facts("locon", block_size="4")) == []
    assert trained(lora(None), facts("dylora", block_size="4")) == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", 3),
        ("diffusion_model.double_blocks.0.img_attn.qkv", 3),
        ("lora_unet_single_blocks_0_linear1", 4),
        ("lora_unet_single_blocks_0_linear2", 1),
    ],
)
def test_the_parts_that_kohya_trains_apart_have_one_alpha_each(name: str, parts: int) -> None:
    own = lora(rank=12)
    told = facts(rank=12 / parts, split_qkv="True")
    forms = trained(own, told, name)
    assert [alpha_of(form) for form in forms] == ([] if parts == 1 else [2.0 * parts])
    # Where the rank is not told, it is taken to be that; another one was resized, and is one part.
    assert len(trained(own, facts(split_qkv="True"), name)) == len(forms)
    assert trained(own, facts(rank=12, split_qkv="True"), name) == []
    assert trained(own, facts(rank=12 / parts), name) == []
    assert trained(lora(None, 12), told, name) == []


def test_corrections_build_on_each_other() -> None:
    told = facts("dylora", raw=True, rs_lora="True", split_qkv="True")
    forms = trained(lora(), told, "x_qkv")
    assert [alpha_of(form) for form in forms] == [8.0, 16.0, 48.0]


# ---- OFT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_kohyas_oft_with_alpha_0_turns_nothing(split: bool) -> None:
    blocks = torch.randn(3, 4, 4)
    tensors = {"oft_blocks__0": blocks, "oft_blocks__1": blocks} if split else {"oft_blocks": blocks}
    shape = (24, 5) if split else (12, 5)

    def turned(own: Algorithm) -> float:
        return float(own.structure(shape).delta(torch.ones(shape)).abs().max())

    for module, alpha, turns in (("networks.oft", 0, False), ("networks.oft_flux", 0, False)):
        (form,) = trained(algorithm(**tensors, alpha=torch.tensor(float(alpha))), facts(module=module))
        assert (turned(form) > 1e-6) == turns
    for module, alpha in (("lycoris.kohya", 0.0), ("networks.oft", 0.1), ("networks.lora", 0.0)):
        own = algorithm(**tensors, alpha=torch.tensor(alpha))
        assert trained(own, facts(module=module)) == []
        assert turned(own) > 1e-2
    assert trained(algorithm(**tensors), facts(module="networks.oft")) == []
