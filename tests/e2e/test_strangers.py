"""A stranger's file in a running ComfyUI: nothing of its names runs on the page, and no error is a flood."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from lab.browser import open_page
from lab.client import RunResult
from lab.server import ComfyServer
from lab.workflows import Prompt
from safetensors.torch import save_file
from strangers import NAMES, problems

COMBINE = {
    "method": "sum",
    "density": 0.5,
    "lambda": 1.0,
    "epsilon": 0.2,
    "gamma": 0.01,
    "seed": 0,
    "output": "lora",
    "rank_control": "fixed rank",
    "rank": 1,
    "threshold": 0.95,
    "budget_mb": 100.0,
    "dtype": "as stored",
}
#: Keeps the progress texts, which the page itself forgets. It shows each as HTML.
LISTEN = """() => {
    window.__said = [];
    window.app.api.addEventListener('progress_text', (event) => window.__said.push(event.detail.text));
}"""


def put(server: ComfyServer, name: str, layers: list[str]) -> str:
    """A LoRA of these layers among the server's files, as the nodes list it."""
    up, down = torch.randn(24, 2), torch.randn(2, 16)
    tensors = {f"{layer}.lora_up.weight": up.clone() for layer in layers}
    tensors |= {f"{layer}.lora_down.weight": down.clone() for layer in layers}
    save_file(tensors, server.models / "loras" / f"{name}.safetensors")
    return f"{name}.safetensors"


def combining(file: str) -> Prompt:
    load = {"lycoris_name": file, "strength_model": 1.0, "strength_clip": 1.0}
    return {
        "1": {"class_type": "LoadLyCORIS", "inputs": load},
        "2": {"class_type": "CombineLyCORIS", "inputs": {"lycoris": ["1", 0], **COMBINE}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }


def applying(file: str) -> Prompt:
    prompt = combining(file)
    prompt["2"] = {
        "class_type": "ApplyLyCORISToModel",
        "inputs": {
            "model": ["4", 0],
            "lycoris": ["1", 0],
            "strength_model": 1.0,
            "strength_clip": 1.0,
            "on_unmatched": "error if nothing matches",
        },
    }
    prompt["3"]["inputs"]["source"] = ["2", 2]
    return prompt | {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.safetensors"}}
    }


def test_a_name_of_a_file_does_not_run_on_the_page(server: ComfyServer, browser: Path) -> None:
    script = "window.__ran=(window.__ran||0)+1"
    names = [f'<img src=x onerror="{script}">{number}' for number in range(20)]
    names += [f"[[x|javascript:{script}]]", "__LNK0__", "[[x|https://example.org]]"]
    file = put(server, "evil", [f"lora_unet_{name}" for name in names])

    with open_page(server.url, browser) as page:
        page.page.evaluate(LISTEN)
        page.load(combining(file), "evil")
        kind, detail = page.queue()
        assert kind == "execution_success", detail
        page.page.wait_for_timeout(500)

        said: list[str] = page.page.evaluate("() => window.__said")
        assert any("onerror" in text for text in said), "the page has been told the names"
        assert [problems(text) for text in said if problems(text)] == []
        assert page.page.evaluate("() => window.__ran ?? 0") == 0
        assert page.page.evaluate("() => document.querySelectorAll('img[src=\"x\"]').length") == 0
        assert page.page.evaluate("() => document.querySelectorAll('a[href*=\"example.org\"]').length") == 0


def test_reports_and_errors_of_the_server_are_harmless(
    server: ComfyServer, run: Callable[[Prompt], RunResult]
) -> None:
    names = [name for name in NAMES.values() if len(name) < 1000]
    file = put(server, "names", [f"lora_unet_{name}" for name in names])
    combined, applied = run(combining(file)), run(applying(file))

    assert combined.status == "success", combined.error
    assert "LoRA" in combined.text()
    assert problems(combined.text()) == []
    assert applied.status == "error"
    assert problems(applied.error["exception_message"].rstrip()) == []


def test_an_error_at_a_node_carries_no_flood(server: ComfyServer, run: Callable[[Prompt], RunResult]) -> None:
    result = run(applying(put(server, "many", [f"lora_unet_blocks_{number}_attn" for number in range(350)])))

    assert result.status == "error"
    assert "many.safetensors" in str(result.error["current_inputs"]["lycoris"])
    assert len(json.dumps(result.error)) < 20_000
