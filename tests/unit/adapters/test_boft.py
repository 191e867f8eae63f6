"""Stages of a butterfly multiplied out to fewer, larger ones: the same rotation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.rotating import butterfly

from lycoris_algos.adapters.boft import Butterfly


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
    adapter = Butterfly(rotations)
    expected = butterfly(rotations.numpy(), weight.numpy()) - weight.numpy()

    merged = adapter.prepare(lambda: weight)
    assert len(merged.rotations) == count
    plain = adapter.ready(weight.shape, weight.device, weight.dtype)
    np.testing.assert_allclose(plain.ready_delta(weight).numpy(), expected, atol=1e-12)
    wide = merged.ready(weight.shape, weight.device, weight.dtype)
    np.testing.assert_allclose(wide.ready_delta(weight).numpy(), expected, atol=1e-6)  # kept in float32
    assert merged.prepare(lambda: weight) is merged

    changed = weight.clone()
    wide.add_rows_(changed, 0, 0.7, weight)
    np.testing.assert_allclose(changed.numpy(), weight.numpy() + 0.7 * expected, atol=1e-6)
