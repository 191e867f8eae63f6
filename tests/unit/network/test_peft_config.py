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
    tensors = {**lora(), "alpha": torch.tensor(2.0)}
    for alpha, ignored in ((8, True), (2, False), (None, False)):
        found = load(tensors, lora_alpha=alpha)
        assert scale(found) == 0.5
        assert any("ignored" in note for note in found.notes) == ignored


def test_a_bias_of_lora_b_is_scaled_as_its_matrix() -> None:
    (layer,) = load({**lora(), "lora_B.bias": torch.ones(24)}, lora_alpha=8, r=4, lora_bias=True).values()
    assert layer.bias is not None
    assert torch.equal(layer.bias.delta((24,)), torch.full((24,), 2.0))
    own = {**lora(), "lora_B.bias": torch.ones(24), "alpha": torch.tensor(2.0)}
    (layer,) = load(own, lora_alpha=8, r=4, lora_bias=True).values()
    assert layer.bias is not None
    assert torch.equal(layer.bias.delta((24,)), torch.full((24,), 0.5))


@pytest.mark.parametrize("rank", [-0.5, -1, -4])
def test_a_rank_below_nothing_is_refused(rank: float) -> None:
    with pytest.raises(BadValueError, match="it is damaged"):
        load({"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(6, 4)}, alpha=8, r=rank)


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


def reading(tensors: dict[str, Tensor], **config: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(the tensors that are stored of a layer that was read so, what was done about it)."""
    adapters = load(tensors, "transformer.x", **config)
    (layer,) = adapters.values()
    return layer.to_tensors(), adapters.notes


def test_a_small_block_of_miss_is_one_that_is_repeated_where_the_configuration_says_so() -> None:
    block = {"miss_block": torch.randn(4, 6)}
    stored, notes = reading(block, peft_type="MISS", init_weights="mini")
    assert float(stored["miss_block.mini"]) == 1.0
    assert "repeats over the outputs" in notes[0]
    for config in (
        {"peft_type": "MISS", "init_weights": True},
        {"init_weights": "mini"},
        {"peft_type": "MISS"},
    ):
        stored, notes = reading(block, **config)
        assert stored.keys() == {"miss_block"}
        assert not notes
    again, notes = reading(
        {**block, "miss_block.mini": torch.ones(())}, peft_type="MISS", init_weights="mini"
    )
    assert again.keys() == {"miss_block", "miss_block.mini"}
    assert not notes


def test_the_vectors_of_hra_become_orthogonal_where_training_made_them_so() -> None:
    vectors = {"hra_u": torch.randn(16, 4)}
    stored, notes = reading(vectors, peft_type="HRA", apply_GS=True)
    assert torch.allclose(stored["hra_u"].T @ stored["hra_u"], torch.eye(4), atol=1e-6)
    assert "orthogonal" in notes[0]
    # Gram-Schmidt: the first ones span what they spanned before.
    triangle = torch.linalg.qr(torch.cat((stored["hra_u"][:, :2], vectors["hra_u"][:, :2]), dim=1))[1]
    assert float(triangle[2:, 2:].abs().max()) < 1e-5
    for config in ({"peft_type": "HRA"}, {"apply_GS": True}, {"peft_type": "HRA", "apply_GS": False}):
        stored, notes = reading(vectors, **config)
        assert torch.equal(stored["hra_u"], vectors["hra_u"])
        assert not notes


def test_whole_factors_of_a_convolution_of_one_dimension_are_no_kronecker_product_to_peft() -> None:
    first, second = torch.randn(2, 2), {dim: torch.randn(6, 4, *[3] * (dim - 2)) for dim in (2, 3, 4)}
    for dim, w2 in second.items():
        tensors = {"lokr_w1": first, "lokr_w2": w2}
        if dim == 3:
            with pytest.raises(BadValueError, match="one-dimensional convolution"):
                reading(tensors, peft_type="LOKR")
        else:
            reading(tensors, peft_type="LOKR")
        reading(tensors)
    low_rank = {"lokr_w1": first, "lokr_w2_a": torch.randn(6, 2), "lokr_w2_b": torch.randn(2, 12)}
    reading(low_rank, peft_type="LOKR")


def test_the_constraint_of_an_oft_is_that_of_its_configuration() -> None:
    triangles = torch.randn(4, 6)
    norms = 2**0.5 * triangles.norm(dim=1, keepdim=True)
    for eps in (None, 0.5, 100.0):
        config = {} if eps is None else {"eps": eps}
        stored, _ = reading({"oft_R.weight": triangles}, peft_type="OFT", coft=True, **config)
        limit = (6e-5 if eps is None else eps) / 4**0.5
        wanted = triangles * torch.clamp(limit / norms, max=1.0)
        assert torch.allclose(stored["oft_R.weight"], wanted, rtol=1e-5)
    stored, _ = reading({"oft_R.weight": triangles}, peft_type="OFT", eps=0.5)
    assert torch.equal(stored["oft_R.weight"], triangles)


def test_the_series_of_another_length_is_refused() -> None:
    tensors = {"oft_R.weight": torch.randn(4, 6)}
    for terms in (None, 5):
        stored, _ = reading(tensors, peft_type="OFT", peft_version="0.18.0", num_cayley_neumann_terms=terms)
        assert float(stored["oft_R.peft"]) == 1.0
    with pytest.raises(BadValueError, match="with 7 terms"):
        reading(tensors, peft_type="OFT", num_cayley_neumann_terms=7)
    stored, notes = reading(tensors, peft_type="OFT", num_cayley_neumann_terms=7, use_cayley_neumann=False)
    assert float(stored["oft_R.peft"]) == 2.0
    assert "exact transform" in notes[0]
    again, notes = reading(stored, peft_type="OFT")
    assert float(again["oft_R.peft"]) == 2.0
    assert not notes


@pytest.mark.parametrize("start", ["pissa", "PiSSA_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_a_lora_that_began_by_changing_the_base_is_refused(start: str) -> None:
    with pytest.raises(BadValueError, match=f"began it with .{start}"):
        load(lora(), init_lora_weights=start)
    for other in ("gaussian", True, False, None):
        load(lora(), init_lora_weights=other)
    # With an alpha of its own it is a file that was converted.
    load({**lora(), "alpha": torch.tensor(2.0)}, init_lora_weights=start)


def test_the_root_of_the_rank_divides_where_the_configuration_says_so() -> None:
    assert scale(load(lora(), lora_alpha=8, use_rslora=True)) == 4.0
    assert scale(load(lora(), lora_alpha=8, use_rslora=False)) == 2.0
    assert scale(load(lora(), lora_alpha=8, use_rslora="yes")) == 2.0


def test_the_bias_of_a_lora_is_scaled_with_its_matrix() -> None:
    tensors = {**lora(), "lora_B.bias": torch.ones(24)}
    (layer,) = load(tensors, lora_alpha=8).values()
    assert layer.bias is not None
    assert torch.equal(layer.bias.delta((24,)), torch.full((24,), 2.0))
    (plain,) = load(tensors).values()
    assert plain.bias is not None
    assert torch.equal(plain.bias.delta((24,)), torch.ones(24))
