"""Inspect LyCORIS on real models: what it finds, what it shows, and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

VIEWS = ("overview", "energy by block", "spectra", "relative to base", "compare stack", "quantisation")


@pytest.fixture
def node(comfy_nodes: dict[str, Any]) -> Any:
    """Inspect LyCORIS."""
    return comfy_nodes["InspectLyCORIS"]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder for previews."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


def two_files(apply: Any) -> Any:
    first = apply.stack({tiny.CONV_IN: tiny.conv_in_lora()}, 1.0)
    return first + apply.stack({tiny.CONV_IN: tiny.conv_in_lora()}, -0.5)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("detail", ["blocks", "layers"])
def test_every_view_shows_a_picture_a_text_and_numbers(
    view: str, detail: str, node: Any, apply: Any, sd15: tuple[Any, Any], pictures: Path
) -> None:
    pytest.importorskip("matplotlib")
    model, clip = sd15
    output = node.execute(two_files(apply), view, detail, model, clip)

    picture, report, document = output.args
    assert picture.shape == (1, 600, 960, 3)
    assert "file_1" in report
    assert json.loads(document)["view"] == view
    assert output.ui["text"] == [report]
    (panel,) = map(json.loads, output.ui["lycoris_inspection"])
    whole = json.loads(document)
    spectra = [layer.pop("singular_values") for layer in whole["layers"]]
    assert any(spectra) == (view == "spectra")
    assert [layer.pop("singular_values") for layer in panel["layers"]] == [[] for _ in spectra]
    assert panel == whole
    (shown,) = output.ui["images"]
    assert shown["type"] == "temp"
    assert (pictures / shown["filename"]).is_file()


def test_values_are_those_of_the_model(node: Any, apply: Any, sd15: tuple[Any, Any], pictures: Path) -> None:
    model, clip = sd15
    stack = two_files(apply)
    (layer, _) = json.loads(node.execute(stack, "relative to base", "blocks", model, clip).args[2])["layers"]

    target = layer["target"]
    weight = model.model.state_dict()[target].float()
    delta = stack[0].adapters[tiny.CONV_IN].delta(weight)
    assert layer["shape"] == list(weight.shape)
    assert layer["norm"] == pytest.approx(float(delta.norm()), rel=1e-4)
    assert layer["relative"] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-4)


def test_how_two_files_meet(node: Any, apply: Any, sd15: tuple[Any, Any], pictures: Path) -> None:
    found = json.loads(node.execute(two_files(apply), "compare stack", "blocks", *sd15).args[2])
    (pair,) = found["pairs"]
    assert pair["cosine"] == pytest.approx(-1, abs=1e-5)
    assert found["together"]["norm_of_sum"] == pytest.approx(found["together"]["sum_of_norms"] / 3, rel=1e-4)


def test_what_the_model_stores_and_what_is_left_of_the_change(
    node: Any, apply: Any, sd15: tuple[Any, Any], pictures: Path
) -> None:
    stack = two_files(apply)
    (layer, _) = json.loads(node.execute(stack, "quantisation", "blocks", *sd15).args[2])["layers"]
    stored = sd15[0].model.state_dict()[layer["target"]]
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    assert layer["dtype"] == names[stored.dtype]
    assert layer["survival"]["fp16"]["nearest"] >= layer["survival"]["fp8 e5m2"]["nearest"]


def test_layers_that_the_model_does_not_have_are_named(
    node: Any, apply: Any, sd15: tuple[Any, Any], pictures: Path
) -> None:
    stack = apply.stack({tiny.CONV_IN: tiny.conv_in_lora(), "lora_unet_nowhere": tiny.conv_in_lora()})
    _, report, document = node.execute(stack, "overview", "blocks", *sd15).args
    problems = {layer["layer"]: layer["problem"] for layer in json.loads(document)["layers"]}
    assert problems[tiny.CONV_IN] is None
    assert "no such layer" in problems["lora_unet_nowhere"]
    assert "1 of 2 layers fit" in report
    assert "lora_unet_nowhere" in report


def test_without_a_model_text_and_numbers_are_there(node: Any, apply: Any, pictures: Path) -> None:
    _, report, document = node.execute(two_files(apply), "energy by block", "layers").args
    assert tiny.CONV_IN in report
    assert json.loads(document)["model"] is None


def test_it_changes_nothing(node: Any, apply: Any, sd15: tuple[Any, Any], pictures: Path) -> None:
    model, clip = sd15
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    for view in VIEWS:
        node.execute(two_files(apply), view, "blocks", model, clip)
    assert not model.patches
    assert not clip.patcher.patches
    after = model.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_an_interrupted_inspection_stops(
    node: Any, apply: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    stack = two_files(apply)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        node.execute(stack, "spectra", "blocks")
