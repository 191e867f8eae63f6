"""The pack in a running ComfyUI, spoken to over HTTP as any program would."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab import adapters, paths, workflows
from lab.client import RunResult, get_json
from lab.images import identical, max_difference, mean_difference
from lab.server import ComfyServer
from lab.workflows import Prompt

if TYPE_CHECKING:
    from lab.images import Pixels

    Run = Callable[[Prompt], RunResult]
    Picture = Callable[[Prompt], Pixels]

LORAS = paths.MODELS / "loras"
VISIBLE = 2.0
"""Grey levels, on average, by which a picture must change to count as changed."""

LOADING_NODES = {"LyCORISLoader": "LyCORISLoader", "ApplyLyCORISToModel": "LoadLyCORIS"}
"""Workflow -> the class of its node that reads the file."""


def named(workflow: str, file: str) -> Prompt:
    """The workflow with this file in the node that reads one."""
    return workflows.with_inputs(workflows.load(workflow), LOADING_NODES[workflow], lycoris_name=file)


def node_id(prompt: Prompt, class_type: str) -> str:
    return next(key for key, node in prompt.items() if node["class_type"] == class_type)


def core_lora_loader(file: str, strength: float) -> Prompt:
    """The loader's workflow with ComfyUI's own node in its place."""
    prompt = workflows.load("LyCORISLoader")
    loader = node_id(prompt, "LyCORISLoader")
    inputs = prompt[loader]["inputs"]
    prompt[loader] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": inputs["model"],
            "clip": inputs["clip"],
            "lora_name": file,
            "strength_model": strength,
            "strength_clip": strength,
        },
    }
    return {key: node for key, node in prompt.items() if node["class_type"] != "PreviewAny"}


@pytest.mark.parametrize("name", workflows.names())
def test_a_workflow_runs_changes_the_picture_and_reports(name: str, run: Run, picture: Picture) -> None:
    prompt = workflows.load(name)
    result = run(prompt)

    assert result.status == "success", f"{result.error} {result.node_errors}"
    assert mean_difference(picture(prompt), picture(workflows.plain(prompt))) > VISIBLE
    previews = [key for key, node in prompt.items() if node["class_type"] == "PreviewAny"]
    assert previews
    for key in previews:
        assert result.text(key).strip(), f"nothing to read at node {key}"


# A file of nothing is refused, and so is to extract it: such a workflow has no plain picture to show.
REFUSING = {"SaveLyCORIS", "ExtractLyCORISFromModels"}
WITHOUT_FILES = [
    name
    for name in workflows.names()
    if not REFUSING & {node["class_type"] for node in workflows.load(name).values()}
]


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_strength_zero_gives_the_plain_picture_bit_for_bit(name: str, picture: Picture) -> None:
    prompt = workflows.load(name)

    assert identical(picture(workflows.with_strength(prompt, 0.0)), picture(workflows.plain(prompt)))


@pytest.mark.parametrize("strength", [0.7, -0.4])
@pytest.mark.parametrize("file", ["tiny_lokr.safetensors", "tiny_loha.safetensors", "tiny_locon.safetensors"])
def test_the_loader_agrees_with_cores_own(file: str, strength: float, picture: Picture) -> None:
    ours = workflows.with_strength(named("LyCORISLoader", file), strength)

    assert max_difference(picture(core_lora_loader(file, strength)), picture(ours)) <= 1


def test_a_file_in_the_lycoris_folder_is_found(run: Run, server: ComfyServer) -> None:
    file = Path(adapters.EXAMPLES[-1].file)
    assert file.parent.name == "lycoris"

    result = run(named("LyCORISLoader", file.name))

    assert result.status == "success", f"{result.error} {result.node_errors}"


@pytest.mark.parametrize(("workflow", "at"), [(name, name) for name in LOADING_NODES])
def test_a_file_for_another_model_is_an_error_that_names_it(
    workflow: str, at: str, run: Run, server: ComfyServer
) -> None:
    file = adapters.write_wrong_model(server.models / "loras")
    prompt = named(workflow, file.name)

    result = run(prompt)

    assert result.status == "error"
    assert result.error["node_id"] == node_id(prompt, at)
    assert file.name in result.error["exception_message"]


@pytest.mark.parametrize("workflow", LOADING_NODES)
def test_a_truncated_file_is_a_readable_error_at_the_loading_node(
    workflow: str, run: Run, server: ComfyServer
) -> None:
    file = adapters.write_truncated(server.models / "loras")
    prompt = named(workflow, file.name)

    result = run(prompt)

    assert result.status == "error"
    assert result.error["node_id"] == node_id(prompt, LOADING_NODES[workflow])
    message = result.error["exception_message"]
    assert file.name in message
    assert "Traceback" not in message


@pytest.mark.parametrize("workflow", LOADING_NODES)
def test_a_missing_file_is_refused_before_the_run(workflow: str, run: Run) -> None:
    prompt = named(workflow, "not_there.safetensors")

    result = run(prompt)

    assert result.status == "refused"
    errors = result.node_errors[node_id(prompt, LOADING_NODES[workflow])]["errors"]
    assert any("not_there.safetensors" in error["details"] for error in errors)


@pytest.mark.parametrize("workflow", LOADING_NODES)
def test_a_file_replaced_on_disk_is_read_again(workflow: str, picture: Picture, server: ComfyServer) -> None:
    file = server.models / "loras" / f"retrained_{workflow}.safetensors"
    shutil.copyfile(LORAS / "tiny_lokr.safetensors", file)
    before = picture(named(workflow, file.name))

    retrained = file.with_suffix(".new")
    shutil.copyfile(LORAS / "tiny_loha.safetensors", retrained)
    retrained.replace(file)
    after = picture(named(workflow, file.name))

    assert identical(before, picture(named(workflow, "tiny_lokr.safetensors")))
    assert identical(after, picture(named(workflow, "tiny_loha.safetensors")))


def test_a_failed_run_leaves_the_models_weights_intact(
    run: Run, picture: Picture, server: ComfyServer
) -> None:
    plain = workflows.plain(workflows.load("LyCORISLoader"))
    before = picture(plain)
    file = adapters.write_wrong_model(server.models / "loras")

    assert run(named("LyCORISLoader", file.name)).status == "error"
    unlike_any_cached = workflows.with_inputs(plain, "SaveImage", filename_prefix="after_failure")
    unlike_any_cached = workflows.with_inputs(unlike_any_cached, "KSampler", denoise=0.9999999)

    assert identical(before, picture(unlike_any_cached))


def pack_nodes(server: ComfyServer) -> dict[str, dict[str, Any]]:
    every: dict[str, dict[str, Any]] = get_json(server.url, "/object_info")
    return {name: node for name, node in every.items() if workflows.is_ours(name)}


def test_every_node_explains_itself_and_its_inputs_and_outputs(server: ComfyServer) -> None:
    nodes = pack_nodes(server)

    assert {"LyCORISLoader", "LoadLyCORIS", "StackLyCORIS", "ApplyLyCORISToModel"} <= nodes.keys()
    silent = [
        f"{name}.{key}"
        for name, node in nodes.items()
        for group in ("required", "optional")
        for key, spec in node["input"].get(group, {}).items()
        if not (len(spec) > 1 and spec[1].get("tooltip"))
    ]
    silent += [name for name, node in nodes.items() if not node["description"]]
    silent += [
        f"{name} output {index}"
        for name, node in nodes.items()
        for index, tooltip in enumerate(node.get("output_tooltips") or [None] * len(node["output"]))
        if not tooltip
    ]
    assert silent == []


def test_every_node_has_a_workflow_of_its_own(server: ComfyServer) -> None:
    assert set(pack_nodes(server)) <= set(workflows.names())
