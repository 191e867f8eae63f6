"""Start values of trained tensors."""

from __future__ import annotations

import math

import torch
from torch import nn

from lycoris_algos.ops.starting import has_kernel, kaiming, normal, ones, pointwise, zeros

LIKE = torch.empty(1, dtype=torch.bfloat16)


def test_they_are_float32_beside_the_weight() -> None:
    made = (zeros(LIKE, 2, 3), ones(LIKE, 2, 3), normal(LIKE, 2, 3, std=1.0), kaiming(LIKE, 2, 3))
    for value in made:
        assert (value.shape, value.dtype, value.device) == ((2, 3), torch.float32, LIKE.device)
    assert not made[0].any()
    assert made[1].eq(1).all()


def test_kaiming_is_what_a_fresh_layer_has() -> None:
    torch.manual_seed(0)
    for shape in ((64, 100), (64, 12, 3, 3)):
        own, reference = kaiming(LIKE, *shape), torch.empty(shape)
        nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
        assert math.isclose(float(own.std()), float(reference.std()), rel_tol=0.05)
        assert float(own.abs().max()) <= 1 / math.sqrt(math.prod(shape[1:]))


def test_kernels() -> None:
    assert [pointwise(shape) for shape in ((4, 3), (4, 3, 5), (4, 3, 1, 1))] == [(), (1,), (1, 1)]
    assert [has_kernel(shape) for shape in ((4, 3), (4, 3, 5), (4, 3, 1, 1))] == [False, True, False]
