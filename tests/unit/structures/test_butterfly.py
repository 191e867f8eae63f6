"""Stages of a butterfly multiplied out to fewer, larger ones: the same rotation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.rotating import butterfly

from lycoris_algos.adapters import component
from lycoris_algos.ops.butterfly import merge_stages, turn
from lycoris_algos.structures.butterfly import ColumnButterfly


@pytest.mark.parametrize(
    ("size", "stages", "spare", "count"),
    [
        (2, 3, 1, 1),  # all in one
        (24, 6, 1, 2),  # twice three
        (24, 7, 1, 3),  # three, three and one, which shares its block with two that are done
        (40, 4, 3, 2),  # more blocks than the stages mix
        (80, 3, 1, 2),  # two at least, whatever the size
        (200, 1, 2, 1),
    ],
)
def test_merged_stages_turn_rows_alike(size: int, stages: int, spare: int, count: int) -> None:
    generator = torch.Generator().manual_seed(stages)
    blocks = spare * 2 ** (stages - 1)
    draws = torch.randn(stages, blocks, size, size, dtype=torch.float64, generator=generator)
    rotations = torch.linalg.qr(draws)[0]
    weight = torch.randn(blocks * size, 3, dtype=torch.float64, generator=generator)
    expected = butterfly(rotations.numpy(), weight.numpy())

    stored = component("boft_diag").from_tensors({"oft_diag": rotations})
    wide = stored.structure(weight.shape, torch.float64)
    assert len(wide.rotations) == count
    assert wide.size == (blocks * size, None)
    assert ColumnButterfly.of(rotations, torch.ones(5), torch.float64).size == (5, blocks * size)
    np.testing.assert_allclose(wide.delta(weight).numpy(), expected - weight.numpy(), atol=1e-12)
    kept = stored.structure(weight.shape)  # in float32
    changed = weight.clone()
    kept.ready(weight.device, weight.dtype).add_rows_(changed, 0, 0.7, weight)
    np.testing.assert_allclose(changed.numpy(), weight.numpy() + 0.7 * (expected - weight.numpy()), atol=1e-6)


@pytest.mark.parametrize(("size", "stages", "spare"), [(2, 3, 1), (24, 7, 1), (40, 4, 3), (200, 1, 2)])
def test_transposed_stages_turn_back(size: int, stages: int, spare: int) -> None:
    generator = torch.Generator().manual_seed(stages)
    blocks = spare * 2 ** (stages - 1)
    draws = torch.randn(stages, blocks, size, size, dtype=torch.float64, generator=generator)
    merged, span = merge_stages(torch.linalg.qr(draws)[0])
    rows = torch.randn(blocks * size, 2, dtype=torch.float64, generator=generator)
    turned = turn(rows, merged, stages, span)
    assert not torch.allclose(turned, rows)
    np.testing.assert_allclose(
        turn(turned, merged, stages, span, transposed=True).numpy(), rows.numpy(), atol=1e-12
    )
