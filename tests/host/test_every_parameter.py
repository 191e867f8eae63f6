"""Whatever a report says is applied is changed, by the right value, however ComfyUI loads the model."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import loading
import pytest
import torch
import zoo
from torch import Tensor

STRENGTH = 0.5
#: Larger parameters are like the others of their kind.
LARGEST = 1 << 18
#: What is no part of the networks that adapters are for: schedules, Stable Audio's embedders of numbers.
BESIDE = ("model_sampling.", "seconds_")

every_way = pytest.mark.parametrize("way", loading.WAYS)


@every_way
@pytest.mark.parametrize("name", zoo.MODELS)
def test_of_every_diffusion_model(
    name: str, way: str, pack: ModuleType, host: Callable[[str], ModuleType]
) -> None:
    if not zoo.has(name):
        pytest.skip("this ComfyUI does not have it")
    model, applying = zoo.model(name), host("applying")

    def apply(adapters: Any) -> tuple[Any, str]:
        stack = (applying.StackEntry(adapters),)
        done = applying.apply_stack(model, None, stack, STRENGTH, 0.0, applying.OnUnmatched.REPORT)
        return done.model, done.report

    check(model, apply, way, pack)


@every_way
@pytest.mark.parametrize("name", zoo.ENCODERS)
def test_of_every_text_encoder(
    name: str, way: str, pack: ModuleType, host: Callable[[str], ModuleType]
) -> None:
    if not zoo.has_encoder(name):
        pytest.skip("this ComfyUI does not have it")
    clip, applying = zoo.clip(name), host("applying")

    def apply(adapters: Any) -> tuple[Any, str]:
        stack = (applying.StackEntry(adapters),)
        done = applying.apply_stack(None, clip, stack, 0.0, STRENGTH, applying.OnUnmatched.REPORT)
        return done.clip.patcher, done.report

    check(clip.patcher, apply, way, pack)


@every_way
def test_of_two_nodes_one_after_the_other(
    way: str, pack: ModuleType, host: Callable[[str], ModuleType]
) -> None:
    model, applying = zoo.model("Wan 2.1"), host("applying")

    def apply(adapters: Any) -> tuple[Any, str]:
        stack = (applying.StackEntry(adapters),)
        once = applying.apply_stack(model, None, stack, 2 * STRENGTH, 0.0, applying.OnUnmatched.REPORT)
        twice = applying.apply_stack(once.model, None, stack, -STRENGTH, 0.0, applying.OnUnmatched.REPORT)
        return twice.model, twice.report

    check(model, apply, way, pack)


@pytest.mark.parametrize("way", ["whole", "in parts"])
def test_what_a_loader_leaves_out_all_the_same_is_said(
    way: str, pack: ModuleType, host: Callable[[str], ModuleType], caplog: pytest.LogCaptureFixture
) -> None:
    """A layer that casts its weight may have more than a weight and a bias; loaders of today forget it."""
    model, applying = zoo.model("Wan 2.1"), host("applying")
    path = "blocks.0.self_attn.q"
    layer = model.model.get_submodule(f"diffusion_model.{path}")
    layer.register_parameter("gain", torch.nn.Parameter(torch.ones(4)))
    adapters = sys.modules[f"{pack.__name__}.lycoris_algos"].from_tensors(
        {f"diffusion_model.{path}.gain.diff": torch.ones(4)}, name="gain"
    )
    stack = (applying.StackEntry(adapters),)
    done = applying.apply_stack(model, None, stack, STRENGTH, 0.0, applying.OnUnmatched.REPORT)
    assert "1 of 1 layers applied" in done.report
    for now in loading.WAYS[way](done.model):
        is_changed = torch.equal(now(f"diffusion_model.{path}.gain"), torch.full((4,), 1.0 + STRENGTH))
        assert is_changed != (f"unchanged: diffusion_model.{path}.gain" in caplog.text)
        caplog.clear()


def check(patcher: Any, apply: Callable[[Any], tuple[Any, str]], way: str, pack: ModuleType) -> None:
    """Applies a change of everything, loads the model, and looks at each parameter and the report."""
    if way == "dynamically" and not loading.has_dynamic():
        pytest.skip("this ComfyUI does not stream weights")
    before = {key: value.clone() for key, value in patcher.model.state_dict().items()}
    layers, stored, changes = change_of_everything(before)
    adapters = sys.modules[f"{pack.__name__}.lycoris_algos"].from_tensors(stored, name="everything")
    assert not adapters.unmatched

    patched, report = apply(adapters)

    refused = {key for key in changes if is_refused(layers[key], report)}
    for now in loading.WAYS[way](patched):
        for key, change in changes.items():
            expected = before[key] if key in refused else before[key] + STRENGTH * change
            error = float((now(key) - expected).abs().max())
            assert error < 1e-5, f"{key} is off by {error}"
    for key, value in patcher.model.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} did not come back"
    assert refused == changes.keys() & {key for key, _ in patcher.model.named_buffers()}


def change_of_everything(
    values: dict[str, Tensor],
) -> tuple[dict[str, str], dict[str, Tensor], dict[str, Tensor]]:
    """({key: layer}, a file that changes all that a model of ``values`` stores, {key: the change in it})."""
    generator = torch.Generator().manual_seed(3)
    layers, stored, changes = {}, {}, {}
    for key, value in values.items():
        if not value.is_floating_point() or value.numel() > LARGEST or key.startswith(BESIDE):
            continue
        changes[key] = torch.randn(value.shape, generator=generator)
        layer, _, name = key.rpartition(".")
        if name == "bias" and f"{layer}.weight" in values:
            layers[key], suffix = layer, "diff_b"
        else:
            layers[key], suffix = key.removesuffix(".weight"), "diff"
        stored[f"{layers[key]}.{suffix}"] = changes[key]
    return layers, stored, changes


def is_refused(layer: str, report: str) -> bool:
    """Whether ``report`` says that ``layer`` is not applied; it names layers of one kind together."""
    _, _, refused = report.partition("not applied:")
    kinds = re.findall(r"^ +- (?:\d+× )?(\S+): ", refused, re.MULTILINE)
    return any(re.fullmatch(re.escape(kind).replace(r"\*", r"\d+"), layer) for kind in kinds)
