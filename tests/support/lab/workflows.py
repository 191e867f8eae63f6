"""Workflows in API format, and the same workflow without this pack's nodes.

A workflow in API format is a dictionary: node id -> {"class_type", "inputs"}; a link is a two-item list
[node id, output index]. The tests ask of a workflow what it does compared with the plain model, so the
plain variant is derived from it, not kept as a second file that could drift.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from lab import paths

Prompt = dict[str, dict[str, Any]]

MODEL_OUTPUT, CLIP_OUTPUT = 0, 1
"""What every node of the pack that changes a model gives out first: the model, then the CLIP."""


def load(name: str) -> Prompt:
    """The workflow `tests/workflows/NAME.json`."""
    return read(paths.WORKFLOWS / f"{name}.json")


def read(path: Path) -> Prompt:
    prompt: Prompt = json.loads(path.read_text("utf-8"))
    return prompt


def names() -> list[str]:
    """The names of all workflows in tests/workflows."""
    return sorted(path.stem for path in paths.WORKFLOWS.glob("*.json"))


def ours(prompt: Prompt) -> list[str]:
    """The ids of this pack's nodes."""
    return [key for key, node in prompt.items() if is_ours(node["class_type"])]


def is_ours(class_type: str) -> bool:
    """Every node id of the pack has the word in it, and no core node has."""
    return "LyCORIS" in class_type


def with_inputs(prompt: Prompt, class_type: str, **values: Any) -> Prompt:
    """A copy in which every node of that class has these input values; an input it lacks is an error."""
    changed = copy.deepcopy(prompt)
    nodes = [node for node in changed.values() if node["class_type"] == class_type]
    if not nodes:
        raise KeyError(f"the workflow has no {class_type}")
    for node in nodes:
        unknown = values.keys() - node["inputs"].keys()
        if unknown:
            raise KeyError(f"{class_type} has no input {', '.join(sorted(unknown))}")
        node["inputs"].update(values)
    return changed


def with_strength(prompt: Prompt, strength: float) -> Prompt:
    """A copy in which every strength of this pack's nodes has this value."""
    changed = copy.deepcopy(prompt)
    for key in ours(changed):
        inputs = changed[key]["inputs"]
        for name, value in inputs.items():
            if name.startswith("strength") and not isinstance(value, list):
                inputs[name] = strength
    return changed


def plain(prompt: Prompt) -> Prompt:
    """A copy without this pack's nodes: models and CLIPs pass them by, what shows their texts goes too."""
    kept = {key: node for key, node in copy.deepcopy(prompt).items() if not is_ours(node["class_type"])}
    for key, node in list(kept.items()):
        for name, value in node["inputs"].items():
            if _is_link(value):
                source = _around(prompt, value)
                if source is None:
                    del kept[key]
                    break
                node["inputs"][name] = source
    return kept


def _around(prompt: Prompt, link: list[Any]) -> list[Any] | None:
    """Follow a link upstream past this pack's nodes; None where it carries something only they make."""
    while is_ours(prompt[link[0]]["class_type"]):
        name = {MODEL_OUTPUT: "model", CLIP_OUTPUT: "clip"}.get(link[1], "")
        upstream = prompt[link[0]]["inputs"].get(name)
        if not _is_link(upstream):
            return None
        link = upstream
    return link


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
