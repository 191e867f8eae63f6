"""The registry of merge methods: what it refuses, and what follows from an entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from combine_runs import LAYER, combine, linear
from oracles import to_numpy
from torch import Tensor

import lycoris_algos
from lycoris_algos import BadValueError
from lycoris_algos.cli import main
from lycoris_algos.merge.combine import METHODS, PARAMETERS, CombineOptions, explained
from lycoris_algos.merge.combine.methods import Kind, _registry, method
from lycoris_algos.merge.combine.methods.dropping import keep_largest
from lycoris_algos.network import StackEntry

HELP_PAGE = Path(__file__).parents[3] / "web" / "docs" / "CombineLyCORIS.md"


@pytest.fixture
def strongest() -> Iterator[None]:
    """A method that is not there otherwise, for the time of a test."""

    @method("strongest", Kind.ELEMENTWISE, "Takes of each element the largest change.", at_least=2)
    def strongest(deltas: Sequence[Tensor], weights: Sequence[float], *, density: float) -> Tensor:
        changes = torch.stack([keep_largest(d, density) * w for d, w in zip(deltas, weights, strict=True)])
        return changes.gather(0, changes.abs().argmax(dim=0, keepdim=True))[0]

    yield
    del _registry._METHODS["strongest"]


def test_the_order_in_which_a_user_is_offered_them() -> None:
    dropping = ["ties", "dare", "della", "breadcrumbs", "magnitude prune"]
    geometry = ["model stock", "slerp", "knots"]
    removing = ["subtract", "common part", "project off"]
    assert list(METHODS) == ["sum", "average", *dropping, *geometry, *removing]


# ---- a new entry ----------------------------------------------------------------------------------------


def test_a_new_method_runs(strongest: None) -> None:
    sets = [linear(4, seed, layers=1) for seed in (1, 2, 3)]
    weights = (1.0, -0.5, 2.0)
    sources = [StackEntry(own, w) for own, w in zip(sets, weights, strict=True)]
    result = combine(sources, method="strongest", density=0.3).adapters[LAYER].delta((64, 48))
    own = []
    for adapters, w in zip(sets, weights, strict=True):
        delta = to_numpy(adapters[LAYER].delta((64, 48)))
        smallest = np.sort(np.abs(delta).ravel())[-int(np.ceil(0.3 * delta.size))]
        own.append(w * np.where(np.abs(delta) >= smallest, delta, 0))
    wanted = np.take_along_axis(np.stack(own), np.abs(own).argmax(0)[None], 0)[0]
    assert np.abs(to_numpy(result) - wanted).max() < 1e-5 * np.abs(wanted).max()
    with pytest.raises(BadValueError, match="'strongest' works on 2 adapters or more, and the stack holds 1"):
        combine(sources[:1], method="strongest")


def test_a_new_method_is_on_the_command_line(
    strongest: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["combine", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "project off,strongest}" in told
    assert "strongest: Takes of each element the largest change." in told
    assert "magnitude prune, knots and strongest: the share of elements that is kept (default: 0.5)" in told
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, file in enumerate(files):
        lycoris_algos.save(linear(4, seed), file)
    out = tmp_path / "out.safetensors"
    command = ["combine", *map(str, files), "--method", "strongest", "--density", "0.2", "-o", str(out)]
    assert main(command) == 0
    assert "strongest of 2 adapter sets" in capsys.readouterr().out
    assert len(lycoris_algos.load(out)) == 3


def weights_and_present(weights: Sequence[float], present: Sequence[int]) -> list[float]:
    raise NotImplementedError


def a_number_that_nobody_declared(
    weights: Sequence[float], present: Sequence[int], *, sharpness: float
) -> list[float]:
    raise NotImplementedError


def the_layer(weights: Sequence[float], present: Sequence[int], *, layer: str) -> list[float]:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "kind", "function", "why"),
    [
        ("ties", Kind.WEIGHTS, weights_and_present, "'ties' is taken"),
        ("new", Kind.GRAM, weights_and_present, "but Kind.GRAM gives"),
        ("new", Kind.WEIGHTS, a_number_that_nobody_declared, "sharpness"),
        ("new", Kind.WEIGHTS, the_layer, "layer"),
    ],
)
def test_an_entry_that_cannot_work_is_an_error_at_import(
    name: str, kind: Kind, function: Callable[..., list[float]], why: str
) -> None:
    before = dict(METHODS)
    with pytest.raises(TypeError, match=why):
        method(name, kind, "Nothing.")(function)
    assert dict(METHODS) == before


# ---- what a user is told --------------------------------------------------------------------------------


def test_a_name_that_is_no_method() -> None:
    with pytest.raises(BadValueError, match="no method 'blend': choose one of sum, average, ties"):
        CombineOptions(method="blend")


@pytest.mark.parametrize(
    ("name", "good", "bad", "why"),
    [
        ("density", (0.001, 1.0), (0.0, 1.01, float("nan")), "above 0 and at most 1"),
        ("epsilon", (0.0, 0.999), (-0.1, 1.0), "at least 0 and below 1"),
        ("gamma", (0.0, 0.999), (-0.1, 1.0), "at least 0 and below 1"),
    ],
)
def test_parameters_out_of_bounds(
    name: str, good: tuple[float, ...], bad: tuple[float, ...], why: str
) -> None:
    for value in good:
        CombineOptions(**{name: value})  # type: ignore[arg-type]
    for value in bad:
        with pytest.raises(BadValueError, match=f"{name} is {value:g}, but must be {why}"):
            CombineOptions(**{name: value})  # type: ignore[arg-type]


def test_what_a_widget_offers_is_allowed() -> None:
    for name, parameter in PARAMETERS.items():
        for value in (parameter.low, parameter.default, parameter.high):
            CombineOptions(**{name: value})  # type: ignore[arg-type]


def test_the_help_page_has_every_method_and_what_it_can_be_told() -> None:
    rows = [
        line.strip("| ").split(" | ") for line in HELP_PAGE.read_text("utf-8").splitlines() if "|" in line
    ]
    told = {row[0].strip("`"): row[1] for row in rows if len(row) == 2}
    for found in METHODS.values():
        assert told[found.name] == found.summary
    for name, parameter in PARAMETERS.items():
        users, _ = explained(parameter).split(":")
        assert users in told[name]
