"""What a layer name may mean in one half of a model: names, pieces, slices, biases, numbered encoders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checkpoint_shapes import UNET, Shapes, clip, openclip

import lycoris_algos
from lycoris_algos.errors import LycorisError, ShapeMismatchError
from lycoris_algos.model_files import LayerIndex, NameIndex, Spot, UnsuitableError, index_checkpoint
from lycoris_algos.model_files.places import put, seen


def half(shapes: Shapes, *, is_text: bool = False) -> LayerIndex:
    rest: Shapes = {} if is_text else {f"{UNET}rest.{number}.weight": (2, 2) for number in range(6)}
    found = index_checkpoint({**rest, **shapes}).half(is_text)
    assert found is not None
    return found


def test_names_are_looked_up_to_the_letter_first() -> None:
    names = NameIndex()
    dotted, flat = Spot("a.b"), Spot("a_b")
    names.add("a.b", dotted)
    names.add("a_b", flat)
    names.add("a_b", flat)
    assert list(names.look_up("a.b")) == [dotted]
    assert list(names.look_up("a_b")) == [flat]
    names.add("c.d.e", dotted)
    names.add("c.d_e", flat)
    assert list(names.look_up("c_d_e")) == [dotted, flat], "in the order in which they came"
    assert list(names.look_up("c")) == []
    assert len(names) == 4


def test_a_name_of_nothing_has_no_meaning() -> None:
    assert list(half({}).meanings("lora_unet_somewhere")) == []


def test_pieces_in_the_order_of_their_rows() -> None:
    shapes = {f"{UNET}a.to_{part}.weight": (rows, 4) for part, rows in (("q", 8), ("k", 2), ("v", 2))}
    layers = half(shapes)
    (spots,) = layers.meanings("lora_unet_a_to_qkv")
    assert [spot.key for spot in spots] == [f"{UNET}a.to_{part}.weight" for part in "qkv"]
    assert layers.counts(spots) == [8, 2, 2]
    assert layers.shape(spots) == (12, 4)


@pytest.mark.parametrize("shape", [(), (64,), (2, 4, 8)])
@pytest.mark.parametrize(
    "key",
    [
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
    ],
)
def test_a_key_of_a_text_encoder_with_another_shape(key: str, shape: tuple[int, ...]) -> None:
    index_checkpoint({**openclip("conditioner.embedders.1.model.", 8), key: shape})
    index_checkpoint({key: shape})


def test_pieces_of_different_widths_are_no_layer() -> None:
    shapes = {f"{UNET}a.to_{part}.weight": (8, width) for part, width in (("q", 4), ("k", 4), ("v", 6))}
    assert list(half(shapes).meanings("lora_unet_a_to_qkv")) == []


def test_a_missing_piece_is_no_layer() -> None:
    shapes = {f"{UNET}a.to_{part}.weight": (8, 4) for part in "qk"}
    assert list(half(shapes).meanings("lora_unet_a_to_qkv")) == []


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ("lora_te2_text_model_encoder_layers_0_self_attn_qkv_proj", None),  # all of the fused weight
        ("lora_te2_text_model_encoder_layers_0_self_attn_kv_proj", (0, 1280, 2560)),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", (0, 0, 1280)),
    ],
)
def test_slices_that_follow_each_other_are_one(layer: str, part: tuple[int, int, int] | None) -> None:
    layers = half(openclip("conditioner.embedders.1.model.", 1280), is_text=True)
    key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_"
    (spots, *_) = layers.meanings(layer)
    assert spots == (Spot(f"{key}weight", part),)
    assert layers.bias_of(spots[0]) == Spot(f"{key}bias", part)


def test_pieces_are_those_of_the_encoder_that_the_name_numbers() -> None:
    shapes = {**clip("conditioner.embedders.0.transformer.", 768), **clip("conditioner.embedders.1.", 1280)}
    layers = half(shapes, is_text=True)
    assert layers.encoders == ("clip_l", "clip_g")
    for number, root in ((1, "conditioner.embedders.0.transformer."), (2, "conditioner.embedders.1.")):
        for name, count in (("q_proj", 1), ("qkv_proj", 3)):
            meaning = next(layers.meanings(f"lora_te{number}_text_model_encoder_layers_0_self_attn_{name}"))
            assert len(meaning) == count
            assert all(spot.key.startswith(root) for spot in meaning)


def test_biases_of_weights_and_parts() -> None:
    layers = half({f"{UNET}a.weight": (12, 4), f"{UNET}a.bias": (12,), f"{UNET}b.weight": (12, 4)})
    weight, bias = Spot(f"{UNET}a.weight"), Spot(f"{UNET}a.bias")
    assert layers.bias_of(weight) == bias
    assert layers.bias_of(Spot(weight.key, (0, 4, 8))) == Spot(bias.key, (0, 4, 8))
    assert layers.bias_of(Spot(weight.key, swapped=True)) == Spot(bias.key, swapped=True)
    assert layers.bias_of(Spot(weight.key, (1, 0, 2))) is None, "a part of the inputs has no bias"
    assert layers.bias_of(Spot(f"{UNET}b.weight")) is None
    assert layers.bias_of(bias) is None


def test_a_part_that_is_not_there_has_no_shape() -> None:
    assert Spot("a", (0, 8, 4)).shape((12, 4)) == (4, 4)
    assert Spot("a", (0, 10, 4)).shape((12, 4)) is None
    assert Spot("a", (1, 0, 4)).shape((12,)) is None
    assert Spot("a", transposed=True).shape((12, 4)) == (4, 12)
    layers = half({f"{UNET}a.weight": (12, 4)})
    assert layers.shape((Spot("nowhere"),)) is None
    assert layers.shape((Spot(f"{UNET}a.weight"), Spot("nowhere"))) is None


@pytest.mark.parametrize(
    "spot",
    [
        Spot("a"),
        Spot("a", (0, 2, 4)),
        Spot("a", (1, 1, 2)),
        Spot("a", transposed=True),
        Spot("a", swapped=True),
        Spot("a", (0, 2, 4), swapped=True),
    ],
)
def test_what_is_put_back_is_seen_again(spot: Spot) -> None:
    weight = torch.arange(24.0).reshape(6, 4)
    assert tuple(seen(weight, spot).shape) == spot.shape((6, 4))
    changed = torch.randn(*seen(weight, spot).shape)
    untouched = weight.clone()
    put(weight, spot, changed)
    assert torch.equal(seen(weight, spot), changed)
    assert int((weight != untouched).sum()) == changed.numel()


# ---- whether an adapter fits ------------------------------------------------------------------------------


def adapter(shape: tuple[int, ...], **more: torch.Tensor) -> lycoris_algos.LayerAdapter:
    return lycoris_algos.LayerAdapter.from_tensors({"diff": torch.ones(shape), **more})


def dora(outputs: int, inputs: int) -> lycoris_algos.LayerAdapter:
    return lycoris_algos.LayerAdapter.from_tensors(
        {
            "lora_up.weight": torch.ones(outputs, 2),
            "lora_down.weight": torch.ones(2, inputs),
            "dora_scale": torch.ones(outputs, 1),
        }
    )


def test_an_adapter_is_held_against_weight_and_bias() -> None:
    layers = half({f"{UNET}a.weight": (12, 4), f"{UNET}a.bias": (12,), f"{UNET}b.weight": (12, 4)})
    a, b = (Spot(f"{UNET}a.weight"),), (Spot(f"{UNET}b.weight"),)
    layers.check(adapter((12, 4), diff_b=torch.ones(12)), a)
    layers.check(adapter((12, 4)), b)
    with pytest.raises(ShapeMismatchError):
        layers.check(adapter((12, 6)), a)
    with pytest.raises(ShapeMismatchError):
        layers.check(adapter((12, 4), diff_b=torch.ones(11)), a)
    with pytest.raises(UnsuitableError, match="this layer of the file's diffusion model has none"):
        layers.check(adapter((12, 4), diff_b=torch.ones(12)), b)
    layers.check_weight(adapter((12, 4), diff_b=torch.ones(12)), b)


def test_only_a_whole_weight_can_be_enlarged() -> None:
    layers = half({f"{UNET}a.weight": (12, 4)})
    wider = lycoris_algos.LayerAdapter.from_tensors(
        {
            "lora_up.weight": torch.ones(12, 2),
            "lora_down.weight": torch.ones(2, 6),
            "reshape_weight": torch.tensor([12, 6]),
        }
    )
    layers.check(wider, (Spot(f"{UNET}a.weight"),))
    with pytest.raises(UnsuitableError, match="enlarges"):
        layers.check(wider, (Spot(f"{UNET}a.weight", (0, 0, 12)),))


def test_what_depends_on_the_weight_needs_it_as_it_was_trained() -> None:
    reverse: Callable[[torch.Tensor], torch.Tensor] = torch.flipud
    layers = half({f"{UNET}a.weight": (12, 4)})
    spots = (Spot(f"{UNET}a.weight", function=reverse),)
    layers.check(adapter((12, 4)), spots)
    with pytest.raises(LycorisError, match="stores in another order"):
        layers.check(dora(12, 4), spots)
    layers.check(dora(12, 4), (Spot(f"{UNET}a.weight", swapped=True),))
