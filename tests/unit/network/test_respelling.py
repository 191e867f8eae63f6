"""Layers that one dialect has as one and another as several: cut and joined exactly, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_shapes import flux
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet, NoSpellingError, convert
from lycoris_algos.merge.combine import CombineOptions, plan_combine, run_combine
from lycoris_algos.model_files import IndexedModel, LayerIndex, Spot, index_checkpoint
from lycoris_algos.network import StackEntry, to_tensors

SHAPES = flux()
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
PARTS = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
KEY = next(key for key in SHAPES if key.endswith("double_blocks.0.img_attn.qkv.weight"))
ROWS, COLUMNS = SHAPES[KEY]
SIZE = ROWS // 3


class Flux(IndexedModel[LayerIndex]):
    """A Flux of a few channels, whose weights are all ones."""

    def __init__(self, *sets: AdapterSet) -> None:
        super().__init__(index_checkpoint(SHAPES), sets)

    def read(self, half: LayerIndex, spot: Spot) -> Tensor:
        return torch.ones(half.shape((spot,)) or ())


def lora(outputs: int, rank: int = 2, inputs: int = COLUMNS, alpha: float | None = None) -> dict[str, Tensor]:
    tensors = {"lora_up.weight": torch.randn(outputs, rank), "lora_down.weight": torch.randn(rank, inputs)}
    return tensors if alpha is None else {**tensors, "alpha": torch.tensor(alpha)}


def adapters(*layers: tuple[str, dict[str, Tensor]]) -> AdapterSet:
    tensors = {f"{name}.{suffix}": value for name, own in layers for suffix, value in own.items()}
    return lycoris_algos.from_tensors(tensors, name="sample")


def separate(own: AdapterSet, parts: list[str] = PARTS, weight: Tensor | None = None) -> Tensor:
    """The change of the fused weight by adapters of its parts."""
    whole = torch.zeros(ROWS, COLUMNS)
    for number, name in enumerate(parts):
        if name in own:
            part = torch.ones(SIZE, COLUMNS) if weight is None else weight[number * SIZE :][:SIZE]
            whole[number * SIZE : (number + 1) * SIZE] = own[name].delta(part)
    return whole


@pytest.mark.parametrize("dialect", ["kohya", "comfy"])
@pytest.mark.parametrize("present", ["qkv", "qv", "k"])
def test_parts_are_joined_exactly(dialect: str, present: str, tmp_path: Path) -> None:
    own = adapters(
        *((name, lora(SIZE, 1 + n, alpha=0.5)) for n, name in enumerate(PARTS) if name[-1] in present)
    )
    back = lycoris_algos.load(
        lycoris_algos.save(convert(own, dialect=dialect, known=Flux(own)), tmp_path / "x.safetensors")
    )
    (layer,) = back.values()
    assert list(back) == [{"kohya": QKV, "comfy": "diffusion_model.double_blocks.0.img_attn.qkv"}[dialect]]
    assert torch.allclose(layer.delta((ROWS, COLUMNS)), separate(own), atol=1e-6)


def test_parts_of_equal_scale_keep_their_numbers() -> None:
    own = adapters(*((name, lora(SIZE, 2, alpha=1.0)) for name in PARTS))
    (joined,) = convert(own, dialect="kohya", known=Flux(own)).values()
    assert joined.to_tensors()["alpha"] == 3.0
    for number, name in enumerate(PARTS):
        up = joined.to_tensors()["lora_up.weight"]
        block = up[number * SIZE : (number + 1) * SIZE, 2 * number : 2 * number + 2]
        assert torch.equal(block, own[name].to_tensors()["lora_up.weight"])


def test_a_layer_that_was_cut_is_joined_to_itself() -> None:
    fused = adapters((QKV, lora(ROWS, 4, alpha=2.0)))
    parts = convert(fused, dialect="diffusers", known=Flux(fused))
    assert list(parts) == PARTS
    assert not any(key.endswith("alpha") for key in to_tensors(parts))
    assert torch.allclose(separate(parts), fused[QKV].delta((ROWS, COLUMNS)), atol=1e-6)
    again = convert(parts, dialect="kohya", known=Flux(parts))
    assert again[QKV].algorithm is not None
    assert again[QKV].algorithm.rank == 4  # the parts share a factor
    assert torch.allclose(again[QKV].delta((ROWS, COLUMNS)), fused[QKV].delta((ROWS, COLUMNS)), atol=1e-6)


def test_dora_on_outputs_is_joined_where_no_row_lacks_its_length() -> None:
    weight = torch.randn(ROWS, COLUMNS)
    layers = [(name, {**lora(SIZE), "lora_magnitude_vector": torch.rand(SIZE) + 1}) for name in PARTS]
    own = adapters(*layers)
    (joined,) = convert(own, dialect="kohya", known=Flux(own)).values()
    assert torch.allclose(joined.delta(weight), separate(own, weight=weight), atol=1e-5)
    some = adapters(*layers[:2])
    with pytest.raises(NoSpellingError, match="cannot be made a part of one"):
        convert(some, dialect="kohya", known=Flux(some))


def test_whole_changes_and_biases_are_joined_and_cut() -> None:
    plain = [(name, {"diff": torch.randn(SIZE, COLUMNS), "diff_b": torch.randn(SIZE)}) for name in PARTS[1:]]
    own = adapters((PARTS[0], lora(SIZE)), *plain)
    (joined,) = convert(own, dialect="comfy", known=Flux(own)).values()
    assert torch.allclose(joined.delta((ROWS, COLUMNS)), separate(own), atol=1e-6)
    assert joined.bias is not None
    wanted = torch.cat([torch.zeros(SIZE), *(tensors["diff_b"] for _, tensors in plain)])
    assert torch.equal(joined.bias.delta((ROWS,)), wanted)


def test_what_mixes_rows_is_refused() -> None:
    own = adapters((QKV, {"oft_blocks": torch.randn(ROWS // 3, 3, 3), "alpha": torch.zeros(())}))
    with pytest.raises(NoSpellingError, match="cannot be cut"):
        convert(own, dialect="diffusers", known=Flux(own))


def test_halves_that_comfyui_has_the_other_way_round_change_places() -> None:
    name = "transformer.norm_out.linear"
    key = next(key for key in SHAPES if key.endswith("final_layer.adaLN_modulation.1.weight"))
    rows, columns = SHAPES[key]
    own = adapters((name, lora(rows, 2, columns)))
    converted = convert(own, dialect="kohya", known=Flux(own))
    (layer,) = converted.values()
    assert list(converted) == ["lora_unet_final_layer_adaLN_modulation_1"]
    first, second = own[name].delta((rows, columns)).chunk(2)
    assert torch.allclose(layer.delta((rows, columns)), torch.cat((second, first)), atol=1e-6)
    assert layer.algorithm is not None
    assert layer.algorithm.rank == 2


@pytest.mark.parametrize(
    "name",
    [
        "transformer.transformer_blocks.0.attn.to_q",
        "transformer.blocks.0.attn1.to_q",
        "base_model.model.transformer_blocks.0.attn.to_q",
        "lora_transformer_transformer_blocks_0_attn_to_q",
        "diffusion_model.layers.0.attention.to_q",
    ],
)
def test_names_alone_do_not_make_kohyas_of_what_diffusers_calls_otherwise(name: str) -> None:
    with pytest.raises(NoSpellingError, match="Give the model"):
        convert(adapters((name, lora(8))), dialect="kohya")


def test_two_layers_of_one_place_are_not_added_unasked() -> None:
    own = adapters((QKV, lora(ROWS)), (PARTS[0], lora(SIZE)))
    with pytest.raises(NoSpellingError, match="two layers would be called"):
        convert(own, dialect="kohya", known=Flux(own))


@pytest.mark.parametrize("first", ["kohya", "diffusers"])
def test_a_combination_has_one_spelling_and_says_so(first: str) -> None:
    fused, parts = adapters((QKV, lora(ROWS))), adapters(*((name, lora(SIZE, 1)) for name in PARTS[:2]))
    sources = [StackEntry(fused), StackEntry(parts)]
    if first == "diffusers":
        sources.reverse()
    combined = run_combine(plan_combine(sources, CombineOptions(), Flux(fused, parts)))
    assert {lycoris_algos.formats.dialect_of(name).name for name in combined.adapters} == {first}
    assert combined.adapters.dialect == first
    assert f"the result as {first}" in combined.report()
    wanted = fused[QKV].delta((ROWS, COLUMNS)) + separate(parts)
    if first == "kohya":
        got = combined.adapters[QKV].delta((ROWS, COLUMNS))
    else:
        got = separate(combined.adapters)
        assert not any(key.endswith("alpha") for key in to_tensors(combined.adapters))
    assert torch.allclose(got, wanted, atol=1e-5)


def test_a_combination_of_spellings_that_nothing_joins_says_that_it_is_mixed() -> None:
    fused, parts = adapters((QKV, lora(ROWS))), adapters((PARTS[0], lora(SIZE, 1)))
    combined = run_combine(plan_combine([StackEntry(fused), StackEntry(parts)]))
    assert set(combined.adapters) == {QKV, PARTS[0]}
    assert "mixed" in combined.report()


def test_unets_need_no_model_to_be_spelled_as_one() -> None:
    names = ("unet.down_blocks.0.attentions.0.to_q", "lora_unet_down_blocks_0_attentions_0_to_k")
    for order in (names, names[::-1]):
        sources = [StackEntry(adapters((name, lora(8)))) for name in order]
        combined = run_combine(plan_combine(sources))
        assert all(name.startswith("lora_unet_") for name in combined.adapters)


def test_ranks_that_differ_are_in_the_metadata_of_peft_spelled_files(tmp_path: Path) -> None:
    names = ["transformer.proj_out", "transformer.blocks.0.proj_out", "transformer.blocks.0.to_q"]
    own = adapters(*((name, lora(8, rank)) for name, rank in zip(names, (3, 2, 2), strict=True)))
    for dialect, start in (("diffusers", "transformer."), ("peft", "")):
        converted = convert(own, dialect=dialect)
        said = json.loads(converted.metadata["lora_adapter_metadata"])
        assert said[f"{start}r"] == said[f"{start}lora_alpha"] == 2
        # PEFT takes the first that a path ends with.
        assert list(said[f"{start}rank_pattern"].items()) == [("blocks.0.proj_out", 2), ("proj_out", 3)]
        assert said[f"{start}alpha_pattern"] == said[f"{start}rank_pattern"]
        back = lycoris_algos.load(lycoris_algos.save(converted, tmp_path / "x.safetensors"))
        for spelled, layer in back.items():
            name = spelled.replace("base_model.model.", "transformer.")
            assert torch.equal(layer.delta((8, COLUMNS)), own[name].delta((8, COLUMNS)))
    same = adapters(*((name, lora(8)) for name in names))
    assert "lora_adapter_metadata" not in convert(same, dialect="diffusers").metadata
