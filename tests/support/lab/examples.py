"""Make example_workflows/ from tests/workflows: the same workflows in the page's own format.

    python -m lab.examples [NAME ...]

The page itself lays the nodes out and writes the file, so an example is what a user would have saved. Seeds
are set to stay, or the second run of an example would give another picture than the first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from lab import adapters, chromium, models, paths, workflows
from lab.browser import open_page
from lab.server import ComfyServer

KEEP_SEEDS = """() => {
    for (const node of window.app.graph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name === 'control_after_generate') widget.value = 'fixed';
    window.app.graph.arrange(80);
    window.app.canvas.ds.scale = 0.8;
    window.app.canvas.ds.offset = [40, 80];
}"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab.examples", description="Write the example workflows.")
    parser.add_argument("names", nargs="*", default=workflows.names())
    names = parser.parse_args(arguments).names
    browser = chromium.find()
    if browser is None:
        print(chromium.ADVICE, file=sys.stderr)
        return 1
    models.ensure(models.FOR_DEMO)
    adapters.ensure()
    with (
        tempfile.TemporaryDirectory(prefix="lab-examples-") as base,
        ComfyServer(Path(base)) as server,
        open_page(server.url, browser) as page,
    ):
        for name in names:
            page.load(workflows.load(name), name)
            page.page.evaluate(KEEP_SEEDS)
            path = paths.EXAMPLE_WORKFLOWS / f"{name}.json"
            path.write_text(page.exported() + "\n", "utf-8")
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
