"""The pack in ComfyUI's web page, in a real Chromium, in both of the page's ways to draw nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lab import paths, workflows
from lab.browser import ComfyPage, open_page
from lab.server import PACK_FOLDER, ComfyServer
from lab.workflows import Prompt
from playwright.sync_api import expect

#: How many widgets a node had before others were added after them.
EARLIER_WIDGETS = {"MergeLyCORIS": 6, "CombineLyCORIS": 15}
REPORT = ".lycoris-report"
"""The element in which the pack's script shows a node's report."""


def example(name: str) -> Prompt:
    """The workflow as users get it, or its API form where there is no such file."""
    path = paths.EXAMPLE_WORKFLOWS / f"{name}.json"
    return workflows.read(path) if path.is_file() else workflows.load(name)


def run_in(page: ComfyPage, name: str) -> None:
    page.load(example(name), name)
    kind, detail = page.queue()
    assert kind == "execution_success", detail


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["litegraph", "nodes2"])
def test_the_report_is_shown_on_the_node(vue_nodes: bool, server: ComfyServer, browser: Path) -> None:
    server.write_settings(**{"Comfy.VueNodes.Enabled": vue_nodes})

    with open_page(server.url, browser) as page:
        run_in(page, "LyCORISLoader")

        assert "LyCORISLoader" in page.node_types()
        shown = page.texts(REPORT)
        assert shown, f"no element {REPORT} with a text"
        assert "tiny_lokr" in "\n".join(shown)
        assert [error for error in page.errors if f"/extensions/{PACK_FOLDER}/" in error] == []


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["litegraph", "nodes2"])
def test_a_workflow_that_is_opened_again_shows_its_own_report(
    vue_nodes: bool, server: ComfyServer, browser: Path
) -> None:
    """Nodes 2.0 goes on with what it shows of a node of the same id."""
    server.write_settings(**{"Comfy.VueNodes.Enabled": vue_nodes})
    first = workflows.load("LyCORISLoader")
    other = workflows.with_inputs(first, "LyCORISLoader", lycoris_name="tiny_loha.safetensors")

    with open_page(server.url, browser) as page:
        for prompt, name in ((first, "tiny_lokr"), (other, "tiny_loha")):
            page.load(prompt)
            kind, detail = page.queue()
            assert kind == "execution_success", detail
            expect(page.page.locator(REPORT)).to_have_text(re.compile(name))


def test_every_example_workflow_opens_and_runs(server: ComfyServer, browser: Path) -> None:
    server.write_settings(**{"Comfy.VueNodes.Enabled": False})

    with open_page(server.url, browser) as page:
        for name in workflows.names():
            run_in(page, name)
            assert set(page.node_types()) >= {
                node["class_type"]
                for node in workflows.load(name).values()
                if workflows.is_ours(node["class_type"])
            }


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["litegraph", "nodes2"])
@pytest.mark.parametrize("node_type", EARLIER_WIDGETS)
def test_a_workflow_saved_with_fewer_widgets_runs(
    node_type: str, vue_nodes: bool, server: ComfyServer, browser: Path
) -> None:
    """The report's place and the page's text of the last run were saved as values after the widgets'."""
    workflow = json.loads(json.dumps(example(node_type)))
    (node,) = (node for node in workflow["nodes"] if node["type"] == node_type)
    earlier = node["widgets_values"][: EARLIER_WIDGETS[node_type]]
    node["widgets_values"] = [*earlier, None, "530 of 539 layers"]
    server.write_settings(**{"Comfy.VueNodes.Enabled": vue_nodes})

    with open_page(server.url, browser) as page:
        page.load(workflow)
        kind, detail = page.queue()
        assert kind == "execution_success", detail
        (saved,) = (node for node in json.loads(page.exported())["nodes"] if node["type"] == node_type)
        assert saved["widgets_values"] == example_values(node_type)


def example_values(node_type: str) -> list[object]:
    (node,) = (node for node in example(node_type)["nodes"] if node["type"] == node_type)
    values: list[object] = node["widgets_values"]
    return values
