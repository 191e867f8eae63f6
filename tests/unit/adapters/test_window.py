"""Pieces of a layer: together they are the layer, in every algorithm, or the algorithm refuses to be cut."""

from __future__ import annotations

import pytest
import tiny
import torch
from samples import CASES, Case
from torch import Tensor

from lycoris_algos import LayerAdapter, ShapeMismatchError, SiblingRowsError, apply_

SHAPE = (24, 16)
#: Algorithms by how ``tiny`` makes them, for a weight of ``SHAPE``.
MADE = ("lora", "loha", "lokr", "full", "dora", "glora", "ia3", "oft", "boft", "tlora")
#: (start, count) of the pieces of 24 rows, aligned to the blocks of an OFT.
PIECES = ((0, 8), (8, 4), (12, 12))


def weight_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def layers() -> list[tuple[str, LayerAdapter, tuple[int, ...]]]:
    """(name, adapter, shape of its weight): every sample, and what ``tiny`` makes."""
    found = [(case.name, LayerAdapter.from_tensors(case.tensors), case.shape) for case in CASES]
    base = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for algo in MADE:
        layer = LayerAdapter.from_tensors(tiny.make(algo, base))
        found.append((f"made-{algo}", layer.prepare(lambda: base), SHAPE))
    found.append(("made-oft-raw", LayerAdapter.from_tensors(tiny.make("oft", base)), SHAPE))
    return found


LAYERS = layers()


def pieces_of(layer: LayerAdapter, outputs: int) -> list[tuple[int, int]]:
    """Pieces that keep the blocks of ``layer`` together; none if it cannot be cut."""
    units = [component.row_unit for component in (*layer.weight_components, *layer.bias_parts)]
    over_rows = layer.magnitude is not None and layer.magnitude.over_rows
    if 0 in units or over_rows or layer.reshape is not None:
        return []
    unit = max(units)
    cut = outputs // unit // 3 * unit
    return [(0, cut), (cut, outputs - cut)] if cut else [(0, outputs)]


@pytest.mark.parametrize(("name", "layer", "shape"), LAYERS, ids=[name for name, _, _ in LAYERS])
def test_the_pieces_together_are_the_layer(name: str, layer: LayerAdapter, shape: tuple[int, ...]) -> None:
    pieces = pieces_of(layer, shape[0])
    if not pieces:
        with pytest.raises(SiblingRowsError):
            layer.rows(0, shape[0] // 2, shape[0])
        return
    for part in (layer, layer.bias):
        if part is None or not part.weight_components:
            continue
        own = shape if part is layer else shape[:1]
        weight = weight_of(own)
        whole = part.delta(weight)
        deltas = [
            part.rows(start, count, shape[0]).delta(weight[start : start + count]) for start, count in pieces
        ]
        assert torch.allclose(torch.cat(deltas), whole, rtol=1e-12, atol=1e-12 * float(whole.abs().max()))
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            expected, cut = weight.to(dtype), weight.to(dtype)
            apply_(expected, [(part, 0.7)])
            for start, count in pieces:
                apply_(cut[start : start + count], [(part.rows(start, count, shape[0]), 0.7)])
            error = float((expected.double() - cut.double()).abs().max())
            assert error <= 4 * torch.finfo(dtype).eps * float(expected.abs().max().double())


@pytest.mark.parametrize("case", [case for case in CASES if case.bias_algos], ids=lambda case: case.name)
def test_the_bias_is_cut_the_same_way(case: Case) -> None:
    layer = LayerAdapter.from_tensors(case.tensors)
    if not pieces_of(layer, case.shape[0]):
        return
    piece = layer.rows(1, 2, case.shape[0]) if case.shape[0] > 3 else layer
    bias = weight_of(case.shape[:1])
    assert layer.bias is not None
    assert piece.bias is not None
    whole = layer.bias.delta(bias)
    assert torch.allclose(piece.bias.delta(bias[1:3]), whole[1:3], atol=1e-12)


@pytest.mark.parametrize("algo", [algo for algo in MADE if algo != "boft"])
def test_the_flat_form_keeps_the_piece(algo: str) -> None:
    base = weight_of(SHAPE, torch.float32)
    layer = LayerAdapter.from_tensors(tiny.make(algo, base)).prepare(lambda: base)
    for start, count in PIECES:
        piece = layer.rows(start, count, SHAPE[0])
        again = LayerAdapter.from_values(iter(piece.to_values()))
        assert torch.equal(again.delta(base[start : start + count]), piece.delta(base[start : start + count]))


def test_a_piece_is_stored_as_its_layer() -> None:
    layer = LayerAdapter.from_tensors(tiny.make("lora", weight_of(SHAPE)))
    piece = layer.rows(0, 8, 24)
    assert piece.to_tensors().keys() == layer.to_tensors().keys()
    assert piece.titles == layer.titles


def test_a_shape_does_for_what_needs_no_weight() -> None:
    layer = LayerAdapter.from_tensors(tiny.make("lokr", weight_of(SHAPE)))
    assert torch.equal(layer.rows(8, 4, 24).delta((4, 16)), layer.delta(SHAPE)[8:12])


@pytest.mark.parametrize(
    ("algo", "start", "count", "words"),
    [
        ("boft", 0, 8, "BOFT mixes all rows of a layer, which this model stores in pieces"),
        ("oft", 0, 6, "Diag-OFT mixes rows of a layer in blocks of 4"),
        ("oft", 2, 4, "Diag-OFT mixes rows of a layer in blocks of 4"),
        ("tlora", 0, 8, "T-LoRA mixes all rows"),
    ],
)
def test_what_needs_its_siblings_is_refused(algo: str, start: int, count: int, words: str) -> None:
    layer = LayerAdapter.from_tensors(tiny.make(algo, weight_of(SHAPE)))
    with pytest.raises(SiblingRowsError, match=words):
        layer.rows(start, count, 24)


def test_dora_is_cut_on_the_output_axis_only() -> None:
    tensors = tiny.make("lora", weight_of(SHAPE))
    outputs = LayerAdapter.from_tensors({**tensors, "dora_scale": torch.rand(24, 1) + 0.5})
    inputs = LayerAdapter.from_tensors({**tensors, "dora_scale": torch.rand(1, 16) + 0.5})
    assert outputs.rows(0, 8, 24).magnitude is not None
    with pytest.raises(SiblingRowsError, match="DoRA on the input axis"):
        inputs.rows(0, 8, 24)


def test_a_layer_that_enlarges_its_weight_is_not_cut() -> None:
    tensors = {**tiny.make("lora", weight_of((24, 32))), "reshape_weight": torch.tensor([24, 32])}
    with pytest.raises(SiblingRowsError, match="enlarges"):
        LayerAdapter.from_tensors(tensors).rows(0, 8, 24)


@pytest.mark.parametrize(("start", "count", "total"), [(0, 0, 24), (-1, 4, 24), (20, 8, 24)])
def test_rows_that_are_not_there(start: int, count: int, total: int) -> None:
    layer = LayerAdapter.from_tensors(tiny.make("lora", weight_of(SHAPE)))
    with pytest.raises(ShapeMismatchError, match="outside a layer of 24 outputs"):
        layer.rows(start, count, total)


def test_a_weight_of_other_rows_or_columns() -> None:
    piece = LayerAdapter.from_tensors(tiny.make("lora", weight_of(SHAPE))).rows(8, 4, 24)
    piece.fits((4, 16))
    for shape in ((8, 16), (24, 16), (4, 12)):
        with pytest.raises(ShapeMismatchError):
            piece.fits(shape)
    wrong_total = LayerAdapter.from_tensors(tiny.make("lora", weight_of(SHAPE))).rows(8, 4, 32)
    with pytest.raises(ShapeMismatchError):
        wrong_total.fits((4, 16))
