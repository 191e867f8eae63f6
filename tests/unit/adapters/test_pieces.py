"""Pieces of a layer: together they are the layer, in every algorithm, or the algorithm refuses to be cut."""

from __future__ import annotations

import pytest
import tiny
import torch
from laws import adapter
from samples import targets
from torch import Tensor

from lycoris_algos import LayerAdapter, NeedsBaseError, ShapeMismatchError, SiblingRowsError
from lycoris_algos.structures import Structure, apply_

SHAPE = (24, 16)
#: Algorithms by how ``tiny`` makes them, for a weight of ``SHAPE``.
MADE = ("lora", "loha", "lokr", "full", "dora", "glora", "ia3", "oft", "boft", "tlora")
#: (start, count) of the pieces of 24 rows, aligned to the blocks of an OFT.
PIECES = ((0, 8), (8, 4), (12, 12))


def weight_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def layers() -> list[tuple[str, LayerAdapter, Tensor]]:
    """(name, adapter, the weight it was trained on): every sample, and what ``tiny`` makes."""
    found = [(target.name, adapter(target), target.weight(torch.float64)) for target in targets()]
    made = [
        (f"made-{algo}", LayerAdapter.from_tensors(tiny.make(algo, BASE)), BASE.double()) for algo in MADE
    ]
    return found + made


BASE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
LAYERS = layers()


def pieces_of(layer: LayerAdapter, structure: Structure, outputs: int) -> list[tuple[int, int]]:
    """Pieces that keep the blocks of ``layer`` together; none if it cannot be cut."""
    unit = structure.row_unit
    if unit == 0 or layer.reshape is not None:
        return []
    cut = outputs // unit // 3 * unit
    return [(0, cut), (cut, outputs - cut)] if cut else [(0, outputs)]


@pytest.mark.parametrize(("name", "layer", "weight"), LAYERS, ids=[name for name, _, _ in LAYERS])
def test_the_pieces_together_are_the_layer(name: str, layer: LayerAdapter, weight: Tensor) -> None:
    outputs = weight.shape[0]
    whole = layer.structure(weight.shape, torch.float64, lambda: weight)
    pieces = pieces_of(layer, whole, outputs)
    if not pieces:
        with pytest.raises(SiblingRowsError):
            layer.rows(whole, 0, outputs // 2, outputs)
        return
    matrix = weight.reshape(outputs, -1)
    delta = whole.ready(weight.device, torch.float64).delta(matrix)
    cut = [layer.rows(whole, start, count, outputs) for start, count in pieces]
    deltas = [
        own.ready(weight.device, torch.float64).delta(matrix[start : start + count])
        for own, (start, count) in zip(cut, pieces, strict=True)
    ]
    assert torch.allclose(torch.cat(deltas), delta, rtol=1e-12, atol=1e-12 * float(delta.abs().max()))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        expected, changed = weight.to(dtype, copy=True), weight.to(dtype, copy=True)
        apply_(expected, [(whole, 0.7)])
        for own, (start, count) in zip(cut, pieces, strict=True):
            apply_(changed[start : start + count], [(own, 0.7)])
        error = float((expected.double() - changed.double()).abs().max())
        assert error <= 4 * torch.finfo(dtype).eps * float(expected.abs().max().double())


@pytest.mark.parametrize("algo", [algo for algo in MADE if algo != "boft"])
def test_the_flat_form_keeps_the_piece(algo: str) -> None:
    layer = LayerAdapter.from_tensors(tiny.make(algo, BASE))
    whole = layer.structure(SHAPE, base=lambda: BASE)
    for start, count in PIECES:
        piece = layer.rows(whole, start, count, SHAPE[0])
        again = Structure.from_values(iter(piece.to_values()))
        own = BASE[start : start + count]
        assert torch.equal(apply_(own.clone(), [(again, 0.7)]), apply_(own.clone(), [(piece, 0.7)]))


def test_a_shape_does_for_what_needs_no_weight() -> None:
    layer = LayerAdapter.from_tensors(tiny.make("lokr", weight_of(SHAPE)))
    piece = layer.rows(layer.structure(SHAPE), 8, 4, 24)
    assert torch.equal(piece.ready(BASE.device, BASE.dtype).delta(), layer.delta(SHAPE)[8:12])


@pytest.mark.parametrize(
    ("algo", "start", "count", "words"),
    [
        ("boft", 0, 8, "BOFT mixes all rows of a layer, which this model stores in pieces"),
        ("oft", 0, 6, "Diag-OFT mixes rows of a layer in blocks of 4"),
        ("oft", 2, 4, "Diag-OFT mixes rows of a layer in blocks of 4"),
    ],
)
def test_what_needs_its_siblings_is_refused(algo: str, start: int, count: int, words: str) -> None:
    layer = LayerAdapter.from_tensors(tiny.make(algo, weight_of(SHAPE)))
    with pytest.raises(SiblingRowsError, match=words):
        layer.rows(layer.structure(SHAPE), start, count, 24)


def test_what_starts_from_the_whole_weight_needs_it() -> None:
    layer = LayerAdapter.from_tensors(tiny.make("tlora", weight_of(SHAPE)))
    with pytest.raises(NeedsBaseError, match="weight of the whole layer"):
        layer.structure(SHAPE)


def test_dora_is_cut_on_the_output_axis_only() -> None:
    tensors = tiny.make("lora", weight_of(SHAPE))
    outputs = LayerAdapter.from_tensors({**tensors, "dora_scale": torch.rand(24, 1) + 0.5})
    inputs = LayerAdapter.from_tensors({**tensors, "dora_scale": torch.rand(1, 16) + 0.5})
    assert outputs.rows(outputs.structure(SHAPE), 0, 8, 24).size == (8, 16)
    with pytest.raises(SiblingRowsError, match="DoRA on the input axis"):
        inputs.rows(inputs.structure(SHAPE), 0, 8, 24)


def test_a_layer_that_enlarges_its_weight_is_not_cut() -> None:
    tensors = {**tiny.make("lora", weight_of((24, 32))), "reshape_weight": torch.tensor([24, 32])}
    layer = LayerAdapter.from_tensors(tensors)
    with pytest.raises(SiblingRowsError, match="enlarges"):
        layer.rows(layer.structure(SHAPE), 0, 8, 24)


@pytest.mark.parametrize(("start", "count", "total"), [(0, 0, 24), (-1, 4, 24), (20, 8, 24)])
def test_rows_that_are_not_there(start: int, count: int, total: int) -> None:
    layer = LayerAdapter.from_tensors(tiny.make("lora", weight_of(SHAPE)))
    with pytest.raises(ShapeMismatchError, match="outside a layer of 24 outputs"):
        layer.rows(layer.structure(SHAPE), start, count, total)


def test_a_weight_of_other_rows_or_columns() -> None:
    layer = LayerAdapter.from_tensors(tiny.make("lora", weight_of(SHAPE)))
    piece = layer.rows(layer.structure(SHAPE), 8, 4, 24)
    piece.fits((4, 16))
    for shape in ((8, 16), (24, 16), (4, 12), ()):
        with pytest.raises(ShapeMismatchError):
            piece.fits(shape)
        weight = torch.zeros(shape)
        with pytest.raises(ShapeMismatchError):
            apply_(weight, [(piece, 1.0)])
        assert not weight.any()
