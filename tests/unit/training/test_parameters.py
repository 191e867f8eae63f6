"""Adapters as parametrizations of parameters, of 2 to 5 dimensions and of fused projections."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize
from training import VARIANTS, moved

from lycoris_algos import BadValueError, LayerAdapter
from lycoris_algos.training import parametrize

SHAPES = ((8, 6), (8, 4, 3), (8, 4, 3, 3), (8, 2, 3, 3, 3))
CASES = [
    (algorithm, options, shape)
    for algorithm, variants in VARIANTS.items()
    if algorithm != "norm"
    for options in variants
    for shape in SHAPES
]


class Holder(nn.Module):
    """A module that has one parameter, and does with it what no layer does."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(shape))

    def forward(self) -> torch.Tensor:
        return self.kernel.square().sum()


@pytest.mark.parametrize(("algorithm", "options", "shape"), CASES)
def test_the_parameter_is_the_changed_one(
    algorithm: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = Holder(*shape)
    before = module.kernel.detach().clone()
    adapter = parametrize(module, "kernel", algorithm, multiplier=0.5, **options)
    torch.testing.assert_close(module.kernel, before, rtol=1e-5, atol=1e-5)
    moved(adapter)
    adapter.eval()
    stored = LayerAdapter.from_tensors(adapter.state_dict())
    torch.testing.assert_close(module.kernel, before + 0.5 * stored.delta(before), rtol=1e-5, atol=1e-4)
    adapter.train()
    module().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    again = copy.deepcopy(adapter)
    assert again.load_state_dict(adapter.state_dict())
    torch_parametrize.remove_parametrizations(module, "kernel", leave_parametrized=False)
    assert torch.equal(module.kernel, before)


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "diag-oft"])
def test_fused_projections_of_an_attention(algorithm: str) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.requires_grad_(False)
    x = torch.randn(2, 5, 8)
    plain, _ = attention(x, x, x)
    adapter = parametrize(attention, "in_proj_weight", algorithm, lora_dim=4)
    output, _ = attention(x, x, x)
    torch.testing.assert_close(output, plain, rtol=1e-5, atol=1e-6)
    moved(adapter, 0.1)
    output, _ = attention(x, x, x)
    output.square().sum().backward()
    assert not torch.allclose(output, plain)
    assert all(parameter.grad.any() for parameter in adapter.parameters())
    with torch_parametrize.cached():
        torch.testing.assert_close(attention(x, x, x)[0], output)


def test_rows_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    module = Holder(8, 6)
    before = module.kernel.detach().clone()
    adapter = parametrize(module, "kernel", "lora", rank_dropout=0.5)
    moved(adapter)
    kept = {int(((module.kernel - before).abs().sum(1) > 0).sum()) for _ in range(8)}
    assert kept <= set(range(9))
    assert len(kept) > 1
    adapter.eval()
    assert ((module.kernel - before).abs().sum(1) > 0).all()


def test_other_parameters_are_refused() -> None:
    for attr in ("bias", "in_features"):
        with pytest.raises(BadValueError, match="2 to 5 dimensions"):
            parametrize(nn.Linear(3, 4), attr, "lora")
