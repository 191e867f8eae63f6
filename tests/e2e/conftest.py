"""One real ComfyUI server for all end-to-end tests, with this pack in it and a base directory of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import adapters, chromium, models
from lab.client import RunResult, fetch_image, run_workflow
from lab.images import pixels
from lab.server import ComfyServer
from lab.workflows import Prompt

if TYPE_CHECKING:
    from lab.images import Pixels


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    models.ensure(models.FOR_DEMO)
    adapters.ensure()
    with ComfyServer(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Path:
    """Chromium or Chrome."""
    found = chromium.find()
    if found is None and os.environ.get("CI"):
        pytest.fail(chromium.ADVICE)
    if found is None:
        pytest.skip(chromium.ADVICE)
    return found


@pytest.fixture(scope="session")
def run(server: ComfyServer) -> Callable[[Prompt], RunResult]:
    """Runs a workflow to its end, whatever the end is."""
    return lambda prompt: run_workflow(server.url, prompt)


@pytest.fixture(scope="session")
def picture(server: ComfyServer, run: Callable[[Prompt], RunResult]) -> Callable[[Prompt], Pixels]:
    """Runs a workflow that must succeed; gives the pixels of the picture that it saved."""

    def shoot(prompt: Prompt) -> Pixels:
        result = run(prompt)
        assert result.status == "success", f"{result.error}\n{result.node_errors}\n{server.log_tail(15)}"
        return pixels(fetch_image(server.url, result.images()[0]))

    return shoot
