"""Strangers' names through the nodes: what is sent to the page, written into reports and errors, or shown."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from strangers import NAMES, problems

COMBINE: dict[str, Any] = {
    "method": "sum",
    "density": 0.5,
    "lambda": 1.0,
    "epsilon": 0.2,
    "gamma": 0.01,
    "seed": 0,
    "output": "lora",
    "rank_control": "fixed rank",
    "rank": 1,
    "threshold": 0.95,
    "budget_mb": 100.0,
    "dtype": "fp32",
}
MERGE: dict[str, Any] = {"strength_model": 1.0, "strength_clip": 1.0, "save_dtype": "as base"}

each_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@pytest.fixture
def sent(host: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to the page as progress text."""
    texts: list[str] = []
    monkeypatch.setattr(host("progress"), "_say", lambda text, node_id: texts.append(text))
    return texts


def tensors(name: str) -> dict[str, tiny.Tensors]:
    """A file whose names are ``name``, beside one layer that tiny_sd15 has and a checkpoint below has."""
    lora = tiny.make("lora", torch.randn(24, 16))
    return {
        tiny.CONV_IN: tiny.conv_in_lora(),
        "lora_unet_blocks_0_linear": lora,
        f"lora_unet_{name}": lora,
        f"lora_te_{name}": lora,
        name: {"no": torch.zeros(1)},
        f"bundle_emb.{name}": {"emb_params": torch.zeros(2, 768), "odd.odd": torch.zeros(1)},
    }


@pytest.fixture
def checkpoint(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A checkpoint whose weights are called ``name``, as the nodes list it; results go below ``folders``."""
    import folder_paths

    own = folders / "checkpoints"
    own.mkdir()
    _, extensions = folder_paths.folder_names_and_paths["checkpoints"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(own)], extensions))
    monkeypatch.setattr(folder_paths, "output_directory", str(folders / "output"))

    def make(name: str) -> str:
        names = [*(f"blocks.{number}.linear" for number in range(8)), name]
        weights = {f"model.diffusion_model.{n}.weight": torch.randn(24, 16) for n in names}
        save_file(weights, own / "base.safetensors")
        return "checkpoints/base.safetensors"

    return make


@each_name
def test_what_the_nodes_say(
    name: str,
    sd15: tuple[Any, Any],
    apply: Any,
    comfy_nodes: dict[str, Any],
    checkpoint: Callable[[str], str],
    sent: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = apply.stack(tensors(name))
    texts = [comfy_nodes["LoadLyCORIS"].execute("file_1.safetensors", 1.0, 1.0).args[1]]
    texts.append(apply(sd15[0], stack, clip=sd15[1])[2])
    hidden = type("Hidden", (), {"unique_id": "7"})
    for node, inputs in (
        ("CombineLyCORIS", COMBINE),
        (
            "MergeLyCORIS",
            {**MERGE, "base": checkpoint(name), "filename_prefix": name, "on_unmatched": "report only"},
        ),
    ):
        monkeypatch.setattr(comfy_nodes[node], "hidden", hidden, raising=False)
        texts += comfy_nodes[node].execute(lycoris=stack, **inputs).args[1:]
    for dialect in ("as stored", "kohya"):
        texts.append(comfy_nodes["SaveLyCORIS"].execute(stack, name, "fp16", dialect).args[1])
    assert len(sent) > 5
    assert {text: problems(text) for text in (*texts, *sent) if problems(text)} == {}


@each_name
def test_what_errors_say(
    name: str,
    sd15: tuple[Any, Any],
    apply: Any,
    comfy_nodes: dict[str, Any],
    checkpoint: Callable[[str], str],
) -> None:
    stack = apply.stack(tensors(name))
    alien = apply.stack({layer: own for layer, own in tensors(name).items() if name in layer})
    merge = {**MERGE, "base": checkpoint(name), "filename_prefix": "m"}
    works: list[Callable[[], object]] = [
        lambda: apply(sd15[0], alien),
        lambda: apply(sd15[0], stack, on_unmatched="error if anything is unmatched"),
        lambda: comfy_nodes["MergeLyCORIS"].execute(
            lycoris=stack, on_unmatched="error if anything is unmatched", **merge
        ),
        lambda: comfy_nodes["SaveLyCORIS"].execute(stack, "x", "fp16", "diffusers-PEFT"),
        lambda: comfy_nodes["LoadLyCORIS"].execute(f"{name}.safetensors", 1.0, 1.0),
    ]
    for number, work in enumerate(works):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of several kinds
            work()
        assert problems(str(caught.value)) == [], number
    assert problems(str(comfy_nodes["LoadLyCORIS"].validate_inputs(f"{name}.safetensors"))) == []
    assert problems(str(comfy_nodes["MergeLyCORIS"].validate_inputs(f"checkpoints/{name}"))) == []


@each_name
def test_a_progress_text(name: str, host: Callable[[str], ModuleType], sent: list[str]) -> None:
    step = host("progress").progress_bar(3, "7")
    step(0, 3, name)
    step(3, 3, name)
    assert [problems(text) for text in sent] == [[], []]
    assert sent[0].startswith("1 of 3: ")
    assert sent[1].startswith("3 of 3: ")


def test_a_failed_node_says_what_it_was_given_in_a_line_or_two(sd15: tuple[Any, Any], apply: Any) -> None:
    import execution

    layers = {f"lora_unet_blocks_{i}_attn": tiny.make("lora", torch.randn(24, 16)) for i in range(350)}
    said = str(execution.format_value(tuple(entry for _ in range(3) for entry in apply.stack(layers))))
    assert "file_1.safetensors" in said
    assert len(said) < 1000


def test_every_class_of_the_nodes_has_a_short_repr(pack: ModuleType) -> None:
    brief = sys.modules[f"{pack.__name__}.lycoris_algos.text"].Brief
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{pack.__name__}.nodes.")]
    values = [(value, module.__name__) for module in modules for value in vars(module).values()]
    own = [value for value, name in values if dataclasses.is_dataclass(value) and value.__module__ == name]
    long = {cls.__qualname__ for cls in own if not issubclass(cls, brief)}
    assert long == {"_Encoder"}, "a key and a number"


def test_a_patch_shows_itself_in_a_line(sd15: tuple[Any, Any], apply: Any) -> None:
    model, _, _ = apply.files(sd15[0], {tiny.CONV_IN: tiny.conv_in_lora()})
    assert [repr(patch) for patch in tiny.patches_of(model).values()] == [
        "LycorisPatch(plain, lora_unet_conv_in)"
    ]
