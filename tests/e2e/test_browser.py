"""The pack in ComfyUI's web page, in a real Chromium, in both of the page's ways to draw nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import paths, workflows
from lab.browser import ComfyPage, open_page
from lab.server import PACK_FOLDER, ComfyServer
from lab.workflows import Prompt

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
