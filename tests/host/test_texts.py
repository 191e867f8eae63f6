"""Every text that a node makes is shown on it: each node run as in its own workflow, in the real ComfyUI."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lab import paths, workflows
from lab.workflows import Prompt

REPORT_JS = "js/report.js"


@pytest.fixture
def lab_files(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the workflows name, where the nodes look for them."""
    import folder_paths

    for file in (paths.MODELS / "loras").iterdir():
        shutil.copy(file, folders / "loras")
    for name in ("checkpoints", "diffusion_models", "text_encoders"):
        _, extensions = folder_paths.folder_names_and_paths[name]
        places = ([str(paths.MODELS / name)], extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, places)
        folder_paths.filename_list_cache.pop(name, None)
    monkeypatch.setattr(folder_paths, "output_directory", str(folders / "output"))


def output_of(key: str, prompt: Prompt, nodes: dict[str, Any], checkpoint: tuple[Any, ...]) -> Any:
    """What node ``key`` returns, its inputs made by the nodes before it."""

    def value(given: Any) -> Any:
        if not isinstance(given, list):
            return given
        source, number = given
        if prompt[source]["class_type"] == "CheckpointLoaderSimple":
            return checkpoint[number]
        return output_of(source, prompt, nodes, checkpoint).args[number]

    node = prompt[key]
    inputs = {name: value(given) for name, given in node["inputs"].items()}
    return nodes[node["class_type"]].execute(**inputs)


def test_every_node_is_run_here(comfy_nodes: dict[str, Any]) -> None:
    assert comfy_nodes.keys() <= set(workflows.names())


@pytest.mark.parametrize("name", workflows.names())
def test_a_text_is_shown_on_the_node(
    name: str, comfy_nodes: dict[str, Any], sd15: tuple[Any, Any], lab_files: None
) -> None:
    prompt = workflows.load(name)
    key = next(key for key, node in prompt.items() if node["class_type"] == name)
    result = output_of(key, prompt, comfy_nodes, sd15)
    schema = comfy_nodes[name].GET_SCHEMA()
    texts = {
        item.display_name: text
        for item, text in zip(schema.outputs, result.args, strict=True)
        if item.io_type == "STRING"
    }
    if not texts:
        assert not schema.is_output_node
        return
    assert schema.is_output_node  # so that its box is there before the first run
    assert result.ui, "its text is shown nowhere: return ui=text_ui(text)"
    (shown,) = result.ui["text"]
    assert shown.strip()
    assert shown == texts.get("report", shown)
    assert shown in texts.values()


def test_the_page_asks_for_the_text_and_not_for_the_name_of_an_output(pack: ModuleType) -> None:
    script = (Path(str(pack.__file__)).parent / pack.WEB_DIRECTORY / REPORT_JS).read_text("utf-8")
    assert "output?.text" in script
    assert "output_name" not in script
    assert ".outputs" not in script
