"""The panel on Inspect LyCORIS, used as a person does: mouse, keyboard, both of the page's renderers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import workflows
from lab.browser import ComfyPage, open_page
from lab.server import PACK_FOLDER, ComfyServer
from playwright.sync_api import Locator, expect

RULES = ".lycoris-panel-rules"
STATUS = ".lycoris-panel-status"
LOOK_AT_IT = """() => {
    const node = window.app.graph.nodes.find((item) => item.type === 'InspectLyCORIS');
    node.setSize([640, 900]);
    const view = window.app.canvas.ds;
    view.scale = 1;
    view.offset = [200 - node.pos[0], 100 - node.pos[1]];
    window.app.graph.setDirtyCanvas(true, true);
}"""
SENT = """() => window.app.graph.nodes.find((item) => item.type === 'LoadLyCORIS')
    .widgets.find((widget) => widget.name === 'multipliers').value"""
KEPT = """() => window.app.graph.nodes.find((item) => item.type === 'InspectLyCORIS')
    .properties.lycoris_multipliers"""


class Panel:
    """The panel of the one node on the page."""

    def __init__(self, page: ComfyPage) -> None:
        self.whole = page
        self.page = page.page
        self.box = self.page.locator(".lycoris-panel-box")

    def cell(self, block: str, kind: str) -> Locator:
        return self.box.locator(f'td[data-block="{block}"][data-kind="{kind}"]')

    def name(self, name: str) -> Locator:
        return self.box.locator(f'th button[data-name="{name}"]')

    def blocks(self) -> list[str]:
        names = self.box.locator("tbody th button").evaluate_all("(all) => all.map((b) => b.dataset.name)")
        return [str(name) for name in names]

    def rules(self) -> str:
        return self.box.locator(RULES).input_value()

    def status(self) -> str:
        return self.box.locator(STATUS).inner_text()


@pytest.fixture(scope="module", params=[False, True], ids=["litegraph", "nodes2"])
def opened(request: pytest.FixtureRequest, server: ComfyServer, browser: Path) -> Iterator[ComfyPage]:
    """The page in one of its two renderers."""
    server.write_settings(**{"Comfy.VueNodes.Enabled": request.param})
    with open_page(server.url, browser) as page:
        yield page


@pytest.fixture
def panel(opened: ComfyPage) -> Iterator[Panel]:
    """The panel of a workflow that was just opened and run."""
    opened.load(workflows.load("InspectLyCORIS"))
    kind, detail = opened.queue()
    assert kind == "execution_success", detail
    opened.page.evaluate(LOOK_AT_IT)
    shown = Panel(opened)
    expect(shown.box.locator("td[data-block]").first).to_be_visible(timeout=20_000)
    yield shown
    ours = [error for error in opened.errors if f"/extensions/{PACK_FOLDER}/" in error]
    assert ours == []


def test_the_map_answers_the_mouse(panel: Panel) -> None:
    blocks = panel.blocks()
    assert blocks[:2] == ["input.1", "middle"]
    assert blocks[-1] == "te.11"
    cell = panel.cell("middle", "attn.q")
    cell.hover()
    status = panel.status()
    assert status.startswith("middle attn.q: 1 layer, share of energy")
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q (lokr)" in status
    assert "rank 4" in status
    assert "norm" in status
    assert cell.get_attribute("aria-label") == status


def test_blocks_and_kinds_are_clicked(panel: Panel) -> None:
    panel.box.get_by_role("spinbutton").fill("0.5")
    panel.name("te.3").click()
    panel.name("te.4").click()
    panel.cell("te.5", "text").click()
    panel.box.get_by_role("spinbutton").fill("0")
    panel.name("attn.k").click()
    assert panel.rules() == "attn.k=0, te.3-5=0.5"
    assert panel.name("te.4").get_attribute("aria-pressed") == "true"
    assert panel.name("te.4").inner_text() == "te.4 ×0.5"
    assert panel.page.evaluate(KEPT) == {"attn.k": 0, "te.3": 0.5, "te.4": 0.5, "te.5": 0.5}
    panel.name("attn.k").click()  # the same again takes it back
    assert panel.rules() == "te.3-5=0.5"
    panel.box.get_by_role("button", name="copy").click()
    assert panel.status() == "copied: te.3-5=0.5"
    panel.box.get_by_role("button", name="clear").click()
    assert panel.rules() == ""
    assert panel.page.evaluate(KEPT) is None


def test_the_keyboard_does_it_all(panel: Panel) -> None:
    panel.cell("input.1", "attn.k").focus()
    panel.page.keyboard.press("ArrowRight")
    assert panel.status().startswith("input.1 attn.out:")
    panel.page.keyboard.press("ArrowDown")
    assert panel.status().startswith("middle attn.out:")
    panel.page.keyboard.press("Enter")
    assert panel.rules() == "middle=0"
    panel.page.keyboard.press("Home")
    panel.page.keyboard.press("ArrowUp")
    assert panel.status().startswith("input.1 attn.k:")
    panel.page.keyboard.press("Space")
    assert panel.rules() == "input.1=0, middle=0"
    panel.page.keyboard.press("Delete")  # of nodes, elsewhere on the page
    assert "InspectLyCORIS" in panel.whole.node_types()


def test_it_is_filtered_and_sorted(panel: Panel) -> None:
    in_model = panel.blocks()
    panel.box.get_by_label("Order of the blocks").select_option("strong")
    strongest = panel.blocks()
    panel.box.get_by_label("Order of the blocks").select_option("weak")
    assert panel.blocks() == strongest[::-1]
    assert sorted(strongest) == sorted(in_model) != strongest
    panel.box.get_by_label("Filter layers").fill("mid_block attn1")
    assert panel.blocks() == ["middle"]
    assert panel.status().startswith("4 of 120 layers in 1 blocks.")
    panel.box.get_by_label("Filter layers").fill("nothing of that name")
    assert panel.blocks() == []
    assert panel.status() == "No layer fits the filter."
    panel.box.get_by_label("Filter layers").fill("")
    panel.box.get_by_label("What the colours show").select_option("norm")
    assert "norm ‖ΔW‖" in str(panel.cell("middle", "ff").get_attribute("aria-label"))


def test_the_rules_are_sent_to_the_node_that_loads_the_file(panel: Panel) -> None:
    panel.name("middle").click()
    panel.box.get_by_role("button", name="send").click()
    assert panel.page.evaluate(SENT) == "middle=0"
    assert panel.status() == "sent to Load LyCORIS"


def contrast(cell: dict[str, Any]) -> float:
    """By WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(cell["text"]), luminance(cell["background"])), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_number_can_be_read_on_its_colour(panel: Panel) -> None:
    cells = panel.box.locator("td[data-block]").evaluate_all(
        """(all) => all.map((cell) => {
            const style = getComputedStyle(cell);
            return {text: style.color, background: style.backgroundColor};
        })"""
    )
    assert min(map(contrast, cells)) >= 4.5
