"""Strangers' texts in every node, as the page shows them: in its widgets, reports, progress and errors."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import workflows
from lab.browser import ComfyPage, open_page
from lab.server import ComfyServer
from lab.workflows import Prompt
from safetensors.torch import save_file
from strangers import NAMES, problems

#: Without a slash, for it is also the name of files.
EVIL = '<img src=x onerror="window.__ran=1"> [[x|javascript:window.__ran=1]] __LNK0__ \u202eWWW.example.org'
#: Elements that only a stranger's text can have made.
BAD = 'img[src="x"], [onerror], a[href*="example.org" i], a[href^="javascript"]'
#: Keeps what the page is told, and counts the elements that it should not make, also those that go again.
WATCH = """(bad) => {
    window.__said = [];
    window.__bad = [];
    window.app.api.addEventListener('progress_text', (event) => window.__said.push(event.detail.text));
    const look = (element) => {
        if (!element.matches) return;
        for (const one of [element, ...element.querySelectorAll('*')])
            if (one.matches(bad)) window.__bad.push(one.outerHTML);
    };
    new MutationObserver((changes) => {
        for (const change of changes) change.addedNodes.forEach(look);
    }).observe(document, {childList: true, subtree: true});
}"""
#: Where on the page the first widget of that name is, in nodes that are drawn on the canvas.
WIDGET_PLACE = """(name) => {
    const node = app.graph.nodes.find((node) => node.widgets?.some((widget) => widget.name === name));
    const widget = node.widgets.find((widget) => widget.name === name);
    app.canvas.centerOnNode(node);
    app.canvas.draw(true, true);
    const middle = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
    const [x, y] = app.canvas.convertOffsetToCanvas(middle);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""
REPORT = ".lycoris-report"


def layer(name: str, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    stored = {"lora_up.weight": torch.randn(24, 2), "lora_down.weight": torch.randn(2, 16), **more}
    return {f"{name}.{suffix}": value for suffix, value in stored.items()}


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> Mapping[str, str]:
    """Everything that a file can be called or hold, by what the nodes list it as."""
    if sys.platform == "win32":
        pytest.skip("no such file names there")
    names = [EVIL, *(name for name in NAMES.values() if len(name) < 1000)]
    tensors = layer("lora_unet_blocks_0_linear")
    fits = {"lora_up.weight": torch.randn(320, 2, 1, 1), "lora_down.weight": torch.randn(2, 4, 3, 3)}
    tensors |= {f"lora_unet_conv_in.{suffix}": value * 0.01 for suffix, value in fits.items()}
    for name in names:
        tensors |= {**layer(f"lora_unet_{name}"), **layer(f"lora_te_{name}")}
        tensors |= {f"{name}.no": torch.zeros(1), f"lora_unet_half_{name}.alpha": torch.zeros(())}
        tensors |= {f"bundle_emb.{name}.{part}": torch.zeros(2, 768) for part in ("emb_params", "odd.odd")}
    keys = ("title", "author", "description", "license", "architecture", "usage_hint")
    metadata = {f"modelspec.{key}": EVIL for key in keys}
    metadata |= {"ss_network_module": EVIL, "modelspec.trigger_phrase": f"{EVIL}, sks"}
    save_file(tensors, server.models / "loras" / f"{EVIL}.safetensors", metadata)
    diverged = layer(f"lora_unet_{EVIL}", alpha=torch.tensor(float("nan")))
    save_file(diverged, server.models / "loras" / f"{EVIL} NaN.safetensors")
    relative = layer(f"lora_unet_{EVIL}", dora_scale=torch.ones(24, 1))
    save_file(relative, server.models / "loras" / f"{EVIL} DoRA.safetensors")
    weights = [*(f"blocks.{number}.linear" for number in range(8)), EVIL]
    base = {f"model.diffusion_model.{name}.weight": torch.randn(24, 16) for name in weights}
    save_file(base, server.models / "checkpoints" / f"{EVIL}.safetensors")
    shown = EVIL.replace("<", "‹")  # as the lists of the nodes have it
    return {
        kind: f"{shown}{end}.safetensors" for kind, end in (("file", ""), ("NaN", " NaN"), ("DoRA", " DoRA"))
    }


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """The node as its own workflow has it, with other ``inputs``."""
    prompt = workflows.load("SaveLyCORIS" if class_type == "CombineLyCORIS" else class_type)
    own: dict[str, Any] = copy.deepcopy(next(n for n in prompt.values() if n["class_type"] == class_type))
    own["inputs"].update(inputs)
    return own


def everything(file: str, strength: float = 0.5) -> Prompt:
    """Every node of the pack, on ``file``, with what they tell. Another ``strength`` is not in the cache."""
    prompt: Prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.safetensors"}},
        "2": node("LoadLyCORIS", lycoris_name=file),
        "3": node("LoadLyCORIS", lycoris_name=file, strength_model=strength),
        "4": node("StackLyCORIS", lycoris_1=["2", 0], lycoris_2=["3", 0]),
        "5": node("ApplyLyCORISToModel", model=["1", 0], clip=["1", 1], lycoris=["4", 0]),
        "6": node("LyCORISLoader", model=["1", 0], clip=["1", 1], lycoris_name=file),
        "7": node("MergeLyCORIS", base=f"checkpoints/{file}", lycoris=["4", 0], filename_prefix=EVIL),
        "8": node("CombineLyCORIS", lycoris=["4", 0], rank=1),
        "9": node("SaveLyCORIS", lycoris=["8", 0], filename_prefix=EVIL, dialect="as stored"),
    }
    prompt["5"]["inputs"]["on_unmatched"] = "error if nothing matches"
    # Reports. Trigger words and paths are data, which core's node shows as Markdown, images and all.
    told = (("2", 1), ("5", 2), ("6", 2), ("7", 1), ("8", 1), ("9", 1))
    for number, source in enumerate(told, 20):
        prompt[str(number)] = {"class_type": "PreviewAny", "inputs": {"source": list(source)}}
    return prompt


def only(prompt: Prompt, last: str, **inputs: Any) -> Prompt:
    """What the node ``last`` needs, and it, with other ``inputs``, shown by a node of core."""
    needed, waiting = {}, [last]
    while waiting:
        key = waiting.pop()
        needed[key] = copy.deepcopy(prompt[key])
        waiting += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    needed[last]["inputs"].update(inputs)
    return {**needed, "99": {"class_type": "PreviewAny", "inputs": {"source": [last, 0]}}}


def assert_harmless(page: ComfyPage, *texts: str) -> None:
    page.page.wait_for_timeout(300)
    said: list[str] = page.page.evaluate("() => window.__said")
    assert {text: problems(text) for text in (*said, *texts) if problems(text)} == {}
    assert page.page.evaluate("() => window.__ran ?? 0") == 0
    assert page.page.evaluate("() => window.__bad") == []


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["litegraph", "nodes2"])
def test_every_node_shows_a_stranger_as_text(
    vue_nodes: bool, files: Mapping[str, str], server: ComfyServer, browser: Path
) -> None:
    server.write_settings(**{"Comfy.VueNodes.Enabled": vue_nodes})
    prompt = everything(files["file"], 0.7 if vue_nodes else 0.6)
    with open_page(server.url, browser) as page:
        page.page.evaluate(WATCH, BAD)
        page.load(prompt, "strangers")
        kind, detail = page.queue()
        assert kind == "execution_success", detail
        assert set(page.node_types()) >= {own["class_type"] for own in prompt.values()}

        reports = page.texts(REPORT)
        assert len(reports) >= 7 if vue_nodes else reports
        assert page.page.evaluate("() => window.__said.length") > 5
        assert_harmless(page, *reports)

        open_list(page, "lycoris_name", vue_nodes)
        listed = page.page.locator("body").inner_text()
        assert " DoRA.safetensors" in listed, "the list of files is open"
        assert_harmless(page)


def open_list(page: ComfyPage, widget: str, vue_nodes: bool) -> None:
    """Has the page show what there is to choose from."""
    if vue_nodes:
        page.page.locator(f'[role="combobox"][aria-label="{widget}"]').first.click()
    else:
        page.page.mouse.click(*page.page.evaluate(WIDGET_PLACE, widget))
    page.page.wait_for_timeout(500)


def test_errors_of_every_node_show_a_stranger_as_text(
    files: Mapping[str, str], server: ComfyServer, browser: Path
) -> None:
    server.write_settings(**{"Comfy.VueNodes.Enabled": False})
    everywhere, strict = everything(files["file"]), "error if anything is unmatched"
    relative = everything(files["DoRA"])
    failing = {
        "LoadLyCORIS": only(everything(files["NaN"]), "2"),
        "ApplyLyCORISToModel": only(everywhere, "5", on_unmatched=strict),
        "LyCORISLoader": only(relative, "6"),
        "MergeLyCORIS": only(everywhere, "7", on_unmatched=strict),
        "CombineLyCORIS": only(relative, "8", method="ties"),
        "SaveLyCORIS": only(everywhere, "9", dialect="diffusers-PEFT"),
    }
    with open_page(server.url, browser) as page:
        page.page.evaluate(WATCH, BAD)
        for class_type, prompt in failing.items():
            page.load(prompt, class_type)
            kind, detail = page.queue()
            assert (kind, detail.get("node_type")) == ("execution_error", class_type)
            assert "onerror" in json.dumps(detail), "the page has been told the names"
            assert_harmless(page, detail["exception_message"].rstrip())
