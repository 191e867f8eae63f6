"""Training here against training with lycoris-lora 4.1.3: the same start, the same data, 20 steps.

Losses agree to 1e-5 at every step, and gradients to 2e-5; to 1e-4 where LyCORIS inverts in float32 (OFT,
BOFT). What LyCORIS does otherwise on purpose here is not compared: a
rotation by ``bypass_mode`` turns the bias there, and ``rs_lora`` scales a LoKr of whole matrices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from reference.modules import _layer, _module_class
from torch import Tensor, nn

from lycoris_algos.training import AdapterModule, train

STEPS = 20
_LAYERS = ("linear", "conv2d_3x3", "conv2d_1x1", "conv1d_3", "conv3d_3")
_TWO: dict[str, Any] = {"lora_dim": 4, "alpha": 2.0}
_DORA = ({"weight_decompose": True, "wd_on_out": True}, {"weight_decompose": True, "wd_on_out": False})
_BYPASS = {"bypass_mode": True}
_FACTORS = ({}, {"use_tucker": True}, {"use_scalar": True}, {"rs_lora": True}, _BYPASS)
_ROTATED = ({}, {"constraint": 0.01}, {"rescaled": True})


class Race(NamedTuple):
    """An algorithm with options on a kind of layer."""

    algorithm: str
    layer: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        own = "+".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.algorithm}-{self.layer}-{own}"


def _races() -> Iterator[Race]:
    for layer in _LAYERS:
        for algorithm in ("lora", "loha"):
            yield from (Race(algorithm, layer, _TWO | own) for own in (*_FACTORS, *_DORA))
        yield from (Race("glora", layer, _TWO | own) for own in _FACTORS if "use_tucker" not in own)
        lokr = (
            *(own for own in _FACTORS if "rs_lora" not in own),
            {"factor": 8},
            {"full_matrix": True},
            {"lora_dim": 2, "decompose_both": True},
            {"lora_dim": 2, "factor": 4, "unbalanced_factorization": True},
            *_DORA,
        )
        yield from (Race("lokr", layer, _TWO | own) for own in lokr)
        for algorithm in ("diag-oft", "boft"):
            yield from (Race(algorithm, layer, {"lora_dim": 8} | own) for own in _ROTATED)
        yield from (Race("ia3", layer, {"train_on_input": on_input}) for on_input in (False, True))
        yield Race("full", layer, {})
        yield Race("dylora", layer, {"lora_dim": 8, "alpha": 4.0, "block_size": 4})
    yield Race("lokr", "linear", {"lora_dim": 2, "alpha": 1.0, "rs_lora": True})
    yield from (Race("tlora", layer, _TWO) for layer in ("linear", "conv2d_1x1"))
    yield from (Race("norm", layer, {}) for layer in ("layernorm", "groupnorm"))


RACES = list(_races())
every_race = pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)


def _theirs(race: Race, module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _module_class(race.algorithm)("x", module, 1.0, **race.options)


def _spread(race: Race, theirs: nn.Module) -> None:
    """Moves LyCORIS' start values, so that every gradient is one from the first step on."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name == "scalar":
                parameter.fill_(0.3)
            elif name not in ("dora_scale", "rescale", "lambda_layer"):
                spread = 0.01 if name == "oft_blocks" else 0.02
                parameter.add_(torch.randn_like(parameter) * spread)


def _take_over(race: Race, theirs: Any, ours: AdapterModule) -> None:
    """Gives ours the values that theirs has."""
    stored = {key: value.detach().clone() for key, value in theirs.state_dict().items()}
    if race.algorithm == "full":
        stored = {"diff": theirs.weight.detach().clone(), "diff_b": theirs.bias.detach().clone()}
    if race.algorithm == "dylora":  # LyCORIS stores alpha as it is asked for
        stored["alpha"] *= race.options["block_size"]
    if race.algorithm == "glora" and race.options.get("rs_lora"):
        stored["alpha"] *= race.options["lora_dim"] ** 0.5
    ours.load_state_dict(stored)
    if race.options.get("use_scalar"):
        own = dict(theirs.named_parameters())
        with torch.no_grad():
            for name, parameter in ours.named_parameters():
                parameter.copy_(own[name])


def _run(
    module: nn.Module, x: Tensor, goal: Tensor, rate: float
) -> tuple[list[float], list[dict[str, Tensor]]]:
    """(losses, gradients by name) of every step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    losses, gradients = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (module(x) - goal).square().mean()
        loss.backward()
        losses.append(loss.item())
        own = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        gradients.append(own)
        optimizer.step()
    return losses, gradients


@every_race
def test_twenty_steps_are_lycoris_own(race: Race) -> None:
    torch.manual_seed(0)
    module, x = _layer(race.layer)
    module.requires_grad_(False)
    goal = module(x) + torch.randn_like(module(x))
    theirs = _theirs(race, module)
    _spread(race, theirs)
    ours = train(module, race.algorithm, **race.options)
    _take_over(race, theirs, ours)
    with (
        mock.patch("random.randint", side_effect=lambda _, last: last),
        mock.patch("torch.randint", side_effect=lambda count, _: torch.tensor(count - 1)),
    ):
        rate = 1e-4 if race.algorithm == "glora" else 1e-3  # its change is of the second order
        expected_losses, expected_gradients = _run(theirs, x, goal, rate)
        losses, gradients = _run(ours, x, goal, rate)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    limit = 1e-4 if race.algorithm in ("diag-oft", "boft") else 2e-5
    for own, expected in zip(gradients, expected_gradients, strict=True):
        for name in own.keys() & expected.keys():
            assert (own[name] - expected[name]).norm() <= limit * expected[name].norm(), name


@every_race
def test_start_values_have_lycoris_distribution(race: Race) -> None:
    """Mean and spread of many draws, within what draws of that many numbers differ by."""
    if race.algorithm in ("full", "dylora"):  # stored in other parameters there
        pytest.skip("its parameters are called otherwise in LyCORIS")
    module, _ = _layer(race.layer)
    names = [name for name, _ in train(module, race.algorithm, **race.options).named_parameters()]
    for name in names:
        drawn = []
        for make in (lambda: train(module, race.algorithm, **race.options), lambda: _theirs(race, module)):
            torch.manual_seed(0)
            values = [dict(make().named_parameters())[name].detach().reshape(-1) for _ in range(8)]
            drawn.append(torch.cat(values).double())
        own, expected = drawn
        assert own.shape == expected.shape
        if name in ("dora_scale", "lambda_layer") or not expected.any():
            torch.testing.assert_close(own, expected)
            continue
        spread = float(expected.square().mean().sqrt())
        few = 6 / len(own) ** 0.5
        assert abs(float(own.mean() - expected.mean())) <= spread * few * 1.5
        assert float(own.square().mean().sqrt()) == pytest.approx(spread, rel=1.5 * few)
        assert float(own.abs().max()) == pytest.approx(float(expected.abs().max()), rel=0.5)
