"""Layers that a checkpoint stores in pieces, and layers that are a part of what it stores as one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from baking import FP8, UNET, Tensors, bake, entry, live, lora, save_base
from safetensors.torch import load_file
from torch import Tensor

from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import plan_bake, weights

PIECES = ("to_q", "to_k", "to_v")
LAYER = "lora_unet_b_to_qkv"
KEYS = [f"{UNET}b.{name}.weight" for name in PIECES]
SIZE = 16


def in_pieces(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint with queries, keys and values apart, and other tensors between them."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for number, name in enumerate(PIECES):
        tensors[f"{UNET}b.{name}.weight"] = torch.randn(SIZE, SIZE, generator=generator).to(dtype)
        tensors[f"{UNET}b.{name}.bias"] = torch.randn(SIZE, generator=generator).to(dtype)
        tensors |= {f"{UNET}rest.{2 * number + n}.weight": torch.zeros(2, 2) for n in range(2)}
    return save_base(folder, tensors)


def whole(path: Path) -> Tensor:
    """The weight that the pieces make."""
    tensors = load_file(path)
    return torch.cat([tensors[key] for key in KEYS])


def fused(algo: str, weight: Tensor) -> Tensors:
    """A file's layer for all pieces."""
    if algo == "dora over rows":
        return {**lora(shape=(3 * SIZE, SIZE)), "dora_scale": torch.linspace(1, 2, SIZE)[None]}
    if algo == "oft across":  # blocks of 24 rows do not end where the pieces of 16 do
        generator = torch.Generator().manual_seed(2)
        return {
            "oft_blocks": torch.randn(2, 24, 24, generator=generator) * 0.1,
            "alpha": torch.tensor(0.0),
        }
    return tiny.make(algo, weight)


#: What needs the rows of all pieces at once, and what can be cut.
TOGETHER = ("tlora", "boft", "dora over rows", "oft across")
CUT = ("lora", "loha", "lokr", "dora", "glora", "oft", "ia3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("algo", [*CUT, *TOGETHER])
def test_a_layer_in_pieces_becomes_what_a_fused_weight_would(
    algo: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = in_pieces(tmp_path, dtype)
    before = whole(base)
    tensors = fused(algo, before)
    result = bake(base, entry({LAYER: tensors}, 0.7))
    assert result.plan.files[0].placed == (LAYER,)
    tiny.assert_weight(whole(result.path), tiny.changed(before, (tensors, 0.7)), algo, steps=40)
    assert torch.allclose(whole(result.path), live(before, (tensors, 0.7)).to(dtype), atol=1e-5)
    assert result.proof.changed == 3


def test_biases_are_cut(tmp_path: Path) -> None:
    base = in_pieces(tmp_path)
    for algo in ("lora", "boft"):
        tensors = {**fused(algo, whole(base)), "diff_b": torch.arange(3.0 * SIZE)}
        result = bake(base, entry({LAYER: tensors}, 0.5))
        biases = [
            torch.cat([file[f"{UNET}b.{name}.bias"] for name in PIECES])
            for file in (load_file(base), load_file(result.path))
        ]
        assert torch.allclose(biases[1], biases[0] + 0.5 * torch.arange(3.0 * SIZE))


@pytest.mark.parametrize("algo", ["boft", "tlora", "dora over rows"])
@pytest.mark.parametrize("alone_first", [True, False])
def test_each_adapter_sees_what_the_one_before_left(algo: str, alone_first: bool, tmp_path: Path) -> None:
    """A layer for all pieces, one for two of them and one for the keys, in the order of the stack."""
    base = in_pieces(tmp_path)
    before = whole(base)
    keys = slice(SIZE, 2 * SIZE)
    parts = slice(SIZE, 3 * SIZE)
    of_all, of_two = fused(algo, before), tiny.make("boft", before[parts])
    alone = tiny.make("dora", before[keys], "alone")
    steps = [
        (slice(None), of_all, {LAYER: of_all}),
        (parts, of_two, {"lora_unet_b_to_kv": of_two}),
        (keys, alone, {"lora_unet_b_to_k": alone}),
    ]
    steps = steps[::-1] if alone_first else [steps[2], *steps]

    result = bake(base, *(entry(layers, 0.6) for _, _, layers in steps))

    expected = before.double()
    for rows, tensors, _ in steps:
        start = before[rows]  # what T-LoRA was trained on
        expected[rows] = tiny.changed(expected[rows], (tensors, 0.6), base=start)
    tiny.assert_weight(whole(result.path), expected, steps=60)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_pieces_of_scaled_fp8(dtype: torch.dtype | None, tmp_path: Path) -> None:
    base = in_pieces(tmp_path)
    tensors = load_file(base)
    for number, key in enumerate(KEYS):
        scale = tensors[key].abs().max() / (448 - 50 * number)
        tensors[key] = (tensors[key] / scale).to(FP8)
        tensors[key.replace("weight", "scale_weight")] = scale
    tensors[f"{UNET}scaled_fp8"] = torch.empty(2, dtype=FP8)
    base = save_base(tmp_path, tensors)

    def plain(file: Tensors) -> Tensor:
        found = [file[k].float() * file.get(k.replace("weight", "scale_weight"), 1.0) for k in KEYS]
        return torch.cat(found)

    boft = fused("boft", plain(tensors))
    result = bake(base, entry({LAYER: boft}), dtype=dtype)
    expected = live(plain(tensors), (boft, 1.0))
    found = plain(load_file(result.path))
    tolerance = 0.13 if dtype is None else 0.01
    assert bool(((found - expected).abs() <= expected.abs() * tolerance + 1e-4).all())
    assert not torch.equal(found, plain(tensors))


def test_a_layer_is_worked_out_again_where_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = in_pieces(tmp_path)
    own = entry({LAYER: fused("boft", whole(base))})
    expected = bake(base, own).path.read_bytes()
    calls, real = itertools.count(), weights.apply_

    def counted(weight: Tensor, *args: Any, **options: Any) -> Tensor:
        if next(calls) == 0:
            weight.fill_(torch.nan)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(weight, *args, **options)

    monkeypatch.setattr(weights, "apply_", counted)
    result = bake(base, own)
    assert result.path.read_bytes() == expected
    assert len(result.redone) == 1


def test_what_has_no_rows_of_pieces_is_named(tmp_path: Path) -> None:
    base = in_pieces(tmp_path)
    wide = {**lora(shape=(60, SIZE)), "reshape_weight": torch.tensor([60, SIZE])}
    plan = plan_bake(read_header(base), [entry({LAYER: wide})])
    (item,) = plan.files[0].unmatched
    assert "it enlarges a weight" in item.reason


def test_a_t_lora_for_a_part_of_a_fused_weight_starts_from_that_part(tmp_path: Path) -> None:
    key = f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"
    tensors = {f"{UNET}rest.{n}.weight": torch.zeros(2, 2) for n in range(6)}
    base = save_base(tmp_path, {**tensors, key: torch.randn(3 * SIZE, SIZE)})
    before = load_file(base)[key]
    keys = slice(SIZE, 2 * SIZE)
    tlora = fused("tlora", before[keys])
    result = bake(base, entry({"transformer.transformer_blocks.0.attn.to_k": tlora}, 0.5))
    expected = before.double()
    expected[keys] = tiny.changed(before[keys], (tlora, 0.5))
    tiny.assert_weight(load_file(result.path)[key], expected, steps=40)
