"""Drive ComfyUI's web page as a user does, in a real Chromium.

Open it with `with open_page(server.url, chromium) as page`, then `page.load(workflow)` and `page.queue()`.
Only the server is reachable: the page asks other hosts for fonts, news and templates, and a test must not.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route, TimeoutError, sync_playwright

FLAGS = (
    "--no-sandbox",  # Chromium refuses to start as root otherwise, and it only ever sees the loopback
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
READY = """() => window.app?.graph && window.app.extensionManager
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 50"""
RECORD_ENDS = """() => {
    window.__labEnds = [];
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        window.app.api.addEventListener(kind, (event) => window.__labEnds.push([kind, event.detail]));
}"""
VISIBLE_TEXTS = """(elements) => elements
    .filter((element) => element.checkVisibility())
    .map((element) => element.value ?? element.textContent)
    .filter((text) => text.trim())"""
TIMEOUT_MS = 90_000


class ComfyPage:
    """ComfyUI's page, ready for use."""

    def __init__(self, page: Page, errors: list[str], blocked: list[str]) -> None:
        self.page = page
        self.errors = errors
        """Uncaught JavaScript errors and what the page wrote to its console as errors. The page itself
        always has some, so look for those that concern you."""
        self.blocked = blocked
        """Addresses outside the server that were asked for."""

    def load(self, workflow: Mapping[str, Any], name: str = "test") -> None:
        """Open a workflow, in the page's own format or in API format."""
        if "nodes" in workflow:
            self.page.evaluate("(w) => window.app.loadGraphData(w)", workflow)
        else:
            self.page.evaluate("([w, n]) => window.app.loadApiJson(w, n)", [workflow, f"{name}.json"])
        self.page.wait_for_function("() => window.app.graph.nodes.length > 0", timeout=TIMEOUT_MS)

    def node_types(self) -> list[str]:
        types: list[str] = self.page.evaluate("() => window.app.graph.nodes.map((n) => n.type)")
        return types

    def queue(self, timeout: float = 120.0) -> tuple[str, dict[str, Any]]:
        """Press the run button's action and wait for the end: the kind of event, and what it carried."""
        self.page.evaluate("() => { window.__labEnds.length = 0; }")
        self.page.evaluate("() => window.app.queuePrompt(0, 1)")
        try:
            self.page.wait_for_function("() => window.__labEnds.length > 0", timeout=timeout * 1000)
        except TimeoutError:
            raise AssertionError(f"the workflow did not end within {timeout:.0f} s") from None
        kind, detail = self.page.evaluate("() => window.__labEnds[0]")
        return str(kind), detail or {}

    def texts(self, selector: str, timeout: float = 10.0) -> list[str]:
        """The texts of the visible elements that match, as soon as there are any; else an empty list."""
        deadline = time.monotonic() + timeout
        while True:
            found: list[str] = self.page.locator(selector).evaluate_all(VISIBLE_TEXTS)
            if found or time.monotonic() > deadline:
                return found
            self.page.wait_for_timeout(100)

    def exported(self) -> str:
        """The open workflow as the page would save it, for example_workflows/.

        Turned into text inside the page: Playwright would make null of undefined, which the page then
        refuses.
        """
        text: str = self.page.evaluate(
            "async () => JSON.stringify((await window.app.graphToPrompt()).workflow, null, 2)"
        )
        return text

    def screenshot(self, path: Path) -> None:
        self.page.screenshot(path=path)


@contextlib.contextmanager
def open_page(url: str, chromium: Path) -> Iterator[ComfyPage]:
    """Open ComfyUI's page with a fresh browser profile and wait until it can be used."""
    errors: list[str] = []
    blocked: list[str] = []
    server = urlsplit(url).netloc

    def only_server(route: Route) -> None:
        parts = urlsplit(route.request.url)
        if parts.scheme in ("data", "blob") or parts.netloc == server:
            route.continue_()
        else:
            blocked.append(route.request.url)
            route.abort()

    with (
        tempfile.TemporaryDirectory(prefix="lab-chromium-", ignore_cleanup_errors=True) as profile,
        sync_playwright() as playwright,
    ):
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium,
            headless=True,
            viewport={"width": 1600, "height": 1000},
            args=list(FLAGS),
        )
        try:
            context.route("**/*", only_server)
            page = context.pages[0]
            page.on("pageerror", lambda error: errors.append(error.stack or str(error)))
            page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
            page.add_init_script("localStorage.setItem('Comfy.userId', 'default');")
            page.goto(url, wait_until="domcontentloaded")
            page.wait_for_function(READY, timeout=TIMEOUT_MS)
            page.evaluate(RECORD_ENDS)
            yield ComfyPage(page, errors, blocked)
        finally:
            context.close()
