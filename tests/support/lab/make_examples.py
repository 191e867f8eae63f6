"""Make example_workflows/ and the README's picture out of tests/workflows/.

    python -m lab.make_examples [NAME ...]

The workflows that the tests run are in API format; users open the web page's own format, which has positions
and sizes in it. ComfyUI's page knows how to make the one from the other, so it does: each workflow is opened
in it, laid out, run, exported, opened again from the export, run again, and photographed. What users get is
therefore known to open and to run, and the examples cannot drift from the tests. Run it again after a change
of the nodes' inputs or reports.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import adapters, chromium, models, paths, workflows
from lab.browser import ComfyPage, open_page
from lab.server import ComfyServer, ServerError, stop_cleanly_on_sigterm

README_PICTURE = paths.REPO / "docs" / "images" / "graph.png"
README_EXAMPLE = "StackLyCORIS"
"""The example with the most of the pack in it. The README shows it up to the last of our nodes."""
PORTRAITS = {"InspectLyCORIS": paths.REPO / "docs" / "images" / "inspect.png"}
"""Nodes that documents show by themselves, out of the example of their name."""

THUMBNAIL_WIDTH = 1024
THUMBNAIL_BYTES = 100_000

TITLE, GAP_X, GAP_Y, MARGIN = 30, 70, 40, 40
"""Pixels: a node's title bar lies above its position; the distances of nodes; the border of a picture."""
CHROME = 200
"""Pixels around the graph that the page's menus may lie in."""

REPORT_WIDTH, REPORT_MAX_HEIGHT = 500, 330
SIZES = {
    "CheckpointLoaderSimple": (320, 98),
    "CLIPTextEncode": (340, 110),
    "KSampler": (300, 262),
    "PreviewAny": (400, 120),
    "SaveImage": (270, 270),
    "StackLyCORIS": (250, 166),
    "VAEDecode": (210, 46),
}
"""Sizes that look better than the page's own."""
NOTE = (
    "Choose your own checkpoint and your own LyCORIS file: "
    "the names here are those of the project's test models."
)
NOTE_SIZE = (340, 180)
BESIDE = {"VAEDecode"}
"""Small nodes that stand below what feeds them instead of taking a column."""

PREPARE = """([name, sizes, note, noteSize]) => {
    const graph = window.app.graph;
    for (const node of graph.nodes) {
        const own = node.constructor.nodeData?.display_name;
        if (own && node.title.toLowerCase() === own.toLowerCase()) node.title = own;
        for (const widget of node.widgets ?? [])
            if (widget.name === 'control_after_generate') widget.value = 'fixed';
        if (sizes[node.type]) node.setSize(sizes[node.type]);
    }
    const text = window.LiteGraph.createNode('Note');
    graph.add(text);
    const about = window.LiteGraph.registered_node_types[name]?.nodeData?.description;
    text.widgets[0].value = about ? `${about}\\n\\n${note}` : note;
    text.setSize(noteSize);
}"""
FIT_REPORTS = """([width, most]) => {
    const graph = window.app.graph;
    const reports = graph.nodes.filter((node) => node.widgets?.some((w) => w.name === 'lycoris_report'));
    for (const node of reports) node.setSize([width, node.size[1]]);
    window.app.canvas.draw(true, true);
    return new Promise((done) => setTimeout(() => {
        for (const node of reports) {
            const text = node.widgets.find((w) => w.name === 'lycoris_report').element.firstChild;
            const more = Math.min(text.scrollHeight, most) - text.clientHeight;
            if (more > 0) node.setSize([width, node.size[1] + more + 12]);
        }
        done();
    }, 500));
}"""
NODES = """() => window.app.graph.nodes.map((node) => ({
    id: String(node.id), type: node.type, size: [...node.size], pos: [...node.pos],
    from: (node.inputs ?? []).map((_, slot) => node.getInputNode(slot))
        .filter((source) => source).map((source) => String(source.id)),
}))"""
PLACE = """(positions) => {
    for (const node of window.app.graph.nodes) node.pos = positions[String(node.id)];
    window.app.graph.setDirtyCanvas(true, true);
}"""
LOOK = """([x, y]) => {
    const view = window.app.canvas.ds;
    view.scale = 1;
    view.offset = [x, y];
    window.app.canvas.deselectAll?.();
    window.app.graph.setDirtyCanvas(true, true);
}"""
CANVAS_CORNER = """() => {
    const box = window.app.canvas.canvas.getBoundingClientRect();
    return [box.x, box.y];
}"""


@dataclass(frozen=True)
class Node:
    """A node on the page: its id, its type, its size without the title bar, and the ids of what feeds it."""

    id: str
    type: str
    width: float
    height: float
    x: float
    y: float
    sources: tuple[str, ...]


Positions = dict[str, tuple[float, float]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab.make_examples", description="Make example_workflows/.")
    parser.add_argument("names", nargs="*", help="workflows of tests/workflows (default: all)")
    names = parser.parse_args(arguments).names or workflows.names()
    stop_cleanly_on_sigterm()
    browser = chromium.find()
    if browser is None:
        print(chromium.ADVICE, file=sys.stderr)
        return 1
    try:
        models.ensure(models.FOR_DEMO)
        adapters.ensure()
        with ComfyServer(paths.LAB / "examples") as server:
            for name in names:
                print(f"  {name} ...", flush=True)
                # A new page each: a page remembers what the last example showed, and on which node.
                with open_page(server.url, browser) as page:
                    make(page, name)
    except (ServerError, AssertionError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"Done. Look at the pictures in {paths.EXAMPLE_WORKFLOWS} and at {README_PICTURE}.")
    return 0


def make(page: ComfyPage, name: str) -> None:
    """One example: the workflow, its thumbnail, and the README's picture if it is that one's turn."""
    page.load(workflows.load(name), name)
    page.page.evaluate(PREPARE, [name, SIZES, NOTE, NOTE_SIZE])
    _run(page, name)
    page.page.evaluate(FIT_REPORTS, [REPORT_WIDTH, REPORT_MAX_HEIGHT])
    page.page.evaluate(PLACE, lay_out(_nodes(page)))
    text = tidy(page.exported(), name)

    page.load(json.loads(text), name)
    _run(page, name)
    nodes = _nodes(page).values()
    thumbnail = _photograph(page, nodes)

    paths.EXAMPLE_WORKFLOWS.mkdir(exist_ok=True)
    (paths.EXAMPLE_WORKFLOWS / f"{name}.json").write_text(text, "utf-8")
    _save_thumbnail(thumbnail, paths.EXAMPLE_WORKFLOWS / f"{name}.jpg")
    if name in PORTRAITS:
        _photograph(page, [node for node in nodes if node.type == name]).save(PORTRAITS[name], optimize=True)
    if name == README_EXAMPLE:
        README_PICTURE.parent.mkdir(parents=True, exist_ok=True)
        end = max(node.x + node.width for node in nodes if workflows.is_ours(node.type))
        _photograph(page, [node for node in nodes if node.x < end]).save(README_PICTURE, optimize=True)


def tidy(text: str, name: str) -> str:
    """The page's export without what differs from one machine or run to the next."""
    workflow = json.loads(text)
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"lycoris/{name}"))
    workflow["extra"] = {"ds": {"scale": 0.7, "offset": [80, 120]}}
    for node in workflow["nodes"]:
        # "ver" and "cnr_id" name the installed versions: a user's page would offer to install exactly those.
        kept = node.get("properties", {}).get("Node name for S&R")
        node["properties"] = {"Node name for S&R": kept} if kept else {}
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


# -- where nodes stand ---------------------------------------------------------------------------------------


def lay_out(nodes: Mapping[str, Node]) -> Positions:
    """Columns from left to right along the links."""
    columns: dict[int, list[Node]] = defaultdict(list)
    for key, column in _columns(nodes).items():
        columns[column].append(nodes[key])
    positions: Positions = {}
    x = 0.0
    for column in sorted(columns):
        y = 0.0
        members = sorted(columns[column], key=_rank)
        for node in members:
            positions[node.id] = (x, y + TITLE)
            y += TITLE + node.height + GAP_Y
        x += max(node.width for node in members) + GAP_X
    return positions


def _rank(node: Node) -> tuple[bool, bool, bool, int]:
    """The note on top, then the order in which the workflow was written; previews are at the bottom."""
    return node.type != "Note", node.type == "PreviewAny", node.type in BESIDE, int(node.id)


def _columns(nodes: Mapping[str, Node]) -> dict[str, int]:
    """The column of each node: right of all its sources, and no further left of its users than it must be."""
    column: dict[str, int] = {}

    def earliest(key: str) -> int:
        if key not in column:
            sources = [earliest(source) for source in nodes[key].sources]
            step = 0 if nodes[key].type in BESIDE else 1
            column[key] = max(sources, default=-step) + step
        return column[key]

    for key in nodes:
        earliest(key)
    users: dict[str, list[str]] = defaultdict(list)
    for key, node in nodes.items():
        for source in node.sources:
            users[source].append(key)
    for key, node in nodes.items():
        if not node.sources and users[key]:
            column[key] = min(column[user] for user in users[key]) - 1
    return column


# -- the page ------------------------------------------------------------------------------------------------


def _run(page: ComfyPage, name: str) -> None:
    kind, detail = page.queue()
    if kind != "execution_success":
        raise AssertionError(f"{name}: {kind} {detail.get('exception_message', '')}")
    if not page.texts(".lycoris-report"):
        raise AssertionError(f"{name}: no node shows a report")
    page.page.wait_for_timeout(1500)  # the pictures that the nodes show are still on their way


def _nodes(page: ComfyPage) -> dict[str, Node]:
    found: list[dict[str, Any]] = page.page.evaluate(NODES)
    return {
        item["id"]: Node(item["id"], item["type"], *item["size"], *item["pos"], tuple(item["from"]))
        for item in found
    }


def _photograph(page: ComfyPage, nodes: Collection[Node]) -> Any:
    """That part of the graph at its natural size, without the page's menus around it."""
    from PIL import Image

    left = min(node.x for node in nodes) - MARGIN
    top = min(node.y for node in nodes) - TITLE - MARGIN
    width = max(node.x + node.width for node in nodes) + MARGIN - left
    height = max(node.y + node.height for node in nodes) + MARGIN - top
    page.page.set_viewport_size({"width": int(width) + 2 * CHROME, "height": int(height) + 2 * CHROME})
    page.page.wait_for_timeout(500)
    corner_x, corner_y = page.page.evaluate(CANVAS_CORNER)
    page.page.evaluate(LOOK, [CHROME - corner_x - left, CHROME - corner_y - top])
    page.page.wait_for_timeout(1500)
    picture = page.page.screenshot(
        clip={"x": CHROME, "y": CHROME, "width": int(width), "height": int(height)}
    )
    return Image.open(io.BytesIO(picture)).convert("RGB")


def _save_thumbnail(picture: Any, path: Path) -> None:
    """As good as fits into THUMBNAIL_BYTES."""
    from PIL import Image

    height = round(picture.height * THUMBNAIL_WIDTH / picture.width)
    small = picture.resize((THUMBNAIL_WIDTH, height), Image.Resampling.LANCZOS)
    for quality in range(90, 30, -5):
        small.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= THUMBNAIL_BYTES:
            return


if __name__ == "__main__":
    sys.exit(main())
