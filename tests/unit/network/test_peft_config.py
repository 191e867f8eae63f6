"""What PEFT's configuration says, beyond what tests/parity/test_peft.py compares with PEFT itself."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lycoris_algos import AdapterSet, BadValueError, from_tensors

LAYER = "base_model.model.blocks.0.attn.to_q"


def load(tensors: dict[str, Tensor], layer: str = LAYER, **config: object) -> AdapterSet:
    stored = {f"{layer}.{suffix}": value for suffix, value in tensors.items()}
    return from_tensors(stored, {"adapter_config": json.dumps(config)}, name="style.safetensors")


def lora() -> dict[str, Tensor]:
    return {"lora_A.weight": torch.ones(4, 16), "lora_B.weight": torch.ones(24, 4)}


def scale(adapters: AdapterSet) -> float:
    """What the product of the factors of ``lora`` is multiplied by."""
    (layer,) = adapters.values()
    return float(layer.delta((24, 16))[0, 0]) / 4


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("to_q", True),
        ("attn.to_q", True),
        ("o_q", False),
        ("to", False),
        ("^to_q", False),
        ("^blocks.0.attn.to_q", True),
        (r"blocks\.\d+\.attn\..*", True),
        (r"blocks\.[1-9]\..*", False),
        ("to_k|to_q", True),
        ("(to_k|to_v)", False),
    ],
)
@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer.", "unet.base_model.model.", ""])
def test_patterns_match_the_end_of_a_path(pattern: str, matches: bool, prefix: str) -> None:
    layer = prefix + LAYER.removeprefix("base_model.model.")
    found = load(lora(), layer, lora_alpha=4, alpha_pattern={pattern: 8})
    assert scale(found) == (2.0 if matches else 1.0)


@pytest.mark.parametrize("pattern", ["a{9}{9}b*", "(a", "[", "*"])
def test_a_pattern_that_cannot_be_tried_is_refused(pattern: str) -> None:
    with pytest.raises(BadValueError, match=r"style\.safetensors.*chooses layers by"):
        load(lora(), lora_alpha=4, alpha_pattern={pattern: 8})


@pytest.mark.parametrize("alpha", [None, "high", [2], {}])
def test_an_alpha_that_is_no_number_is_none(alpha: object) -> None:
    assert scale(load(lora(), lora_alpha=alpha, alpha_pattern={"to_q": alpha})) == 1.0


def test_a_tensor_alpha_goes_first() -> None:
    assert scale(load({**lora(), "alpha": torch.tensor(2.0)}, lora_alpha=8)) == 0.5


def test_a_lokr_of_whole_matrices_without_a_rank_keeps_its_scale() -> None:
    tensors = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(6, 4)}
    for config, expected in (({"alpha": 8, "r": 2}, 4.0), ({"alpha": 8}, 1.0), ({"alpha": 8, "r": 0}, 1.0)):
        (layer,) = load(tensors, **config).values()
        assert float(layer.delta((24, 16))[0, 0]) == expected


def test_onetrainers_oft_is_not_pefts() -> None:
    tensors = {"oft_R.weight": torch.randn(4, 6) * 0.1}
    weight = torch.randn(24, 16, 1, 1)
    deltas = [
        load(tensors, layer, **config)[layer].delta(weight)
        for layer, config in (
            ("transformer.x", {}),
            ("transformer.x", {"peft_type": "OFT", "peft_version": "0.21.2"}),
            ("base_model.model.x", {}),
        )
    ]
    assert torch.equal(deltas[1], deltas[2])
    assert not torch.allclose(deltas[0], deltas[1])
    # Onto a Linear both turn alike.
    flat = [
        load(tensors, layer)[layer].delta(weight[:, :, 0, 0])
        for layer in ("transformer.x", "base_model.model.x")
    ]
    assert torch.equal(*flat)


@pytest.mark.parametrize(
    ("config", "last"),
    [
        ({}, 1.0),  # no configuration at all
        ({"peft_type": "OFT"}, 2.0),  # none before 0.18 says its version
        ({"peft_type": "OFT", "peft_version": "0.17.2.dev0@1a2b3c"}, 2.0),
        ({"peft_type": "OFT", "peft_version": "0.18.0"}, 1.0),
        ({"peft_type": "OFT", "peft_version": "1.2"}, 1.0),
    ],
)
def test_the_series_of_oft_is_that_of_the_version_that_trained_it(
    config: dict[str, object], last: float
) -> None:
    q = torch.tensor([[0.0, 0.3], [-0.3, 0.0]], dtype=torch.float64)
    series = torch.eye(2, dtype=torch.float64) + 2 * q + 2 * q @ q + 2 * q @ q @ q + last * q @ q @ q @ q
    weight = torch.randn(3, 2, dtype=torch.float64)
    tensors = {"oft_R.weight": q[:1, 1:].clone()}
    name = "base_model.model.x"
    found = load(tensors, name, **config)[name].delta(weight)
    torch.testing.assert_close(found, weight @ series.T - weight)
