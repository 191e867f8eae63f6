"""torch.compile: the forward of the algorithms that are trained most is one graph."""

from __future__ import annotations

import warnings

import pytest
import torch
from training import Trial, moved

from lycoris_algos.training import train


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
@pytest.mark.parametrize("bypass", [False, True])
def test_a_step_is_one_graph(algorithm: str, layer: str, bypass: bool) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    module, x = Trial(algorithm, layer, {}).made()
    module.requires_grad_(False)
    adapter = train(module, algorithm, lora_dim=2, bypass_mode=bypass)
    moved(adapter)
    adapter.apply_to()
    wanted = module(x)
    wanted.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in adapter.parameters()]
    adapter.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        got = compiled(x)
        got.square().sum().backward()
    torch.testing.assert_close(got, wanted)
    for parameter, expected in zip(adapter.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
