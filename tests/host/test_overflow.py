"""Patches that take a weight beyond the number type it is loaded in: said, and only where it is so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch

LAYER, KEY = "lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q.weight"
SAID = "some weights get too large for the loaded model"


@pytest.fixture
def load_as(wan: Any) -> Iterator[Callable[[torch.dtype], Any]]:
    """Gives the model with the one weight stored in a number type; it is as it was afterwards."""
    import comfy.utils

    before = tiny.parameter(wan, KEY)

    def load(dtype: torch.dtype) -> Any:
        comfy.utils.set_attr_param(wan.model, KEY, before.to(dtype))
        return wan

    yield load
    comfy.utils.set_attr_param(wan.model, KEY, before)


def lora(weight: torch.Tensor, peak: float) -> dict[str, torch.Tensor]:
    """A change whose largest element is ``peak``."""
    tensors = tiny.make("lora", weight)
    change = tiny.changed(torch.zeros_like(weight), (tensors, 1.0))
    tensors["lora_up.weight"] = tensors["lora_up.weight"] * (peak / float(change.abs().max()))
    return tensors


@pytest.mark.parametrize(
    ("dtype", "peak", "said"),
    [
        (torch.float16, 7e4, True),
        (torch.float16, 6e4, False),
        (torch.float8_e4m3fn, 500.0, True),
        (torch.float8_e4m3fn, 400.0, False),
        (torch.bfloat16, 7e4, False),
        (torch.float32, 7e4, False),
    ],
)
def test_the_report_says_what_the_loaded_weight_shows(
    dtype: torch.dtype, peak: float, said: bool, load_as: Callable[[torch.dtype], Any], apply: Any
) -> None:
    model = load_as(dtype)
    weight = tiny.parameter(model, KEY).float()

    patched, _, report = apply.files(model, {LAYER: lora(weight, peak)})

    assert (SAID in report) == said
    if said:
        line = report[report.index(SAID) :].splitlines()[1]
        assert LAYER in line
        assert "beyond the largest number of" in line
    patched.patch_model(device_to=patched.load_device)
    try:
        stored = tiny.parameter(patched, KEY).float()
    finally:
        patched.unpatch_model(patched.offload_device)
    lost = ~stored.isfinite() if dtype == torch.float16 else stored.abs() >= torch.finfo(dtype).max
    assert bool(lost.any()) == said


def test_the_nodes_strength_counts(load_as: Callable[[torch.dtype], Any], apply: Any) -> None:
    model = load_as(torch.float16)
    layers = {LAYER: lora(tiny.parameter(model, KEY).float(), 4e4)}
    assert SAID not in apply.files(model, layers)[2]
    assert SAID in apply.files(model, layers, strength=2.0)[2]
    assert SAID not in apply.files(model, layers, strength=0.0)[2]
