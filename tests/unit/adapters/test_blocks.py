"""Blocks of rotations: stacks of square matrices with the dimensions of their algorithm, or refused."""

from __future__ import annotations

import re

import pytest
import torch
from samples import CASES

from lycoris_algos import LayerAdapter, LycorisError

#: By sample and tensor: shapes of what is no square, of nothing, and of blocks that no stages connect.
NO_BLOCKS = (
    ("oft-linear", "oft_blocks", ((6, 4, 5), (6, 5, 4), (0, 4, 4), (6, 0, 0), (4, 4))),
    ("oft_diag-linear", "oft_diag", ((6, 4, 5), (6, 5, 4), (0, 4, 4), (4, 4))),
    ("oft_split-linear1", "oft_blocks.0", ((2, 4, 5), (0, 4, 4), (2, 2, 4, 4), (4, 4))),
    ("boft-linear", "oft_blocks", ((2, 2, 4, 5), (2, 0, 4, 4), (2, 3, 4, 4), (2, 2, 3, 3), (3, 2, 4, 4))),
    ("boft_diag-linear", "oft_diag", ((2, 2, 4, 5), (2, 0, 4, 4), (2, 3, 4, 4), (2, 2, 3, 3))),
    ("boft_inputs-linear", "boft_R", ((2, 2, 4, 5), (1, 0, 4, 4), (2, 3, 4, 4), (2, 2, 3, 3), (4, 4))),
)


@pytest.mark.parametrize(
    ("name", "suffix", "shape"),
    [(name, suffix, shape) for name, suffix, shapes in NO_BLOCKS for shape in shapes],
    ids=str,
)
def test_what_is_no_stack_of_blocks_is_refused(name: str, suffix: str, shape: tuple[int, ...]) -> None:
    (case,) = (case for case in CASES if case.name == name)
    with pytest.raises(LycorisError, match=re.escape(suffix)):
        LayerAdapter.from_tensors({**case.tensors, suffix: torch.ones(shape)})


@pytest.mark.parametrize(("blocks", "size"), [(1, 1), (3, 1), (1, 5), (2, 3)])
def test_blocks_of_every_size_are_read(blocks: int, size: int) -> None:
    layer = LayerAdapter.from_tensors({"oft_blocks": torch.zeros(blocks, size, size)})
    weight = torch.randn(blocks * size, 7)
    assert not layer.delta(weight).any()
