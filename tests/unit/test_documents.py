"""What the documents say is so: files that they name are there, the example runs, the picture is today's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from imports import LIBRARY, ROOT, rooms, without_detours
from lab.architecture import DOCUMENT, drawn, picture
from safetensors.torch import save_file

SUPPORT = ROOT / "tests" / "support"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Paths that are not of this repository, by how they begin: the lab, and folders of a user's ComfyUI.
ELSEWHERE = (".host", "ComfyUI/", "models/loras", "models/lycoris")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_MODULE = re.compile(r"python -m ([\w.]+)")
_PATH = re.compile(r"[\w.\-<>]+(/[\w.\-<>]+)*/?")
_ENDINGS = (".py", ".md", ".toml", ".json", ".txt", ".png", ".js")


def named_files(text: str) -> Iterator[str]:
    """Paths that ``text`` names: in links, in backticks, and in blocks of commands (not of other code)."""
    blocks = [body for language, body in _FENCE.findall(text) if not language]
    prose = _FENCE.sub("", text)
    yield from (link for link in _LINK.findall(prose) if ":" not in link)
    for code in (*_CODE.findall(prose), *blocks):
        for word in code.split():
            is_path = "/" in word.strip("/") or word.endswith(("/", *_ENDINGS))
            if _PATH.fullmatch(word) and is_path and not word.startswith(ELSEWHERE):
                yield word


def missing(text: str, folder: Path) -> list[str]:
    """What ``text``, a document in ``folder``, names and is not there. ``<NAME>`` stands for any name."""
    places = (folder, ROOT, LIBRARY, LIBRARY / "adapters")
    files = [
        name
        for name in named_files(text)
        if not any(any(place.glob(re.sub(r"<\w+>", "*", name.rstrip("/")))) for place in places)
    ]
    modules = [name for name in _MODULE.findall(text) if not (_installed(name) or _is_ours(name))]
    return [*files, *modules]


def _installed(module: str) -> bool:
    return module.split(".")[0] in ("pytest", "pip", "venv")


def _is_ours(module: str) -> bool:
    """Whether ``python -m module`` finds it in this repository or in tests/support."""
    path = Path(*module.split("."))
    return any(
        (place / path).is_dir() or (place / path).with_suffix(".py").is_file() for place in (ROOT, SUPPORT)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text("utf-8")
    assert missing(text, document.parent) == []
    assert list(named_files(text)), "a document that names nothing is not what this test is about"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see [here](docs/gone.md#part)", ["docs/gone.md"]),
        ("see `lycoris_algos/adapters/gone.py`", ["lycoris_algos/adapters/gone.py"]),
        ("see `adapters/gone.py` and `gone/`", ["adapters/gone.py", "gone/"]),
        ("```\npytest tests/gone -k loha\n```\n", ["tests/gone"]),
        ("a page `web/gone/<NodeId>.md`", ["web/gone/<NodeId>.md"]),
        ("`python -m lab.gone > docs/compatibility.md`", ["lab.gone"]),
        ("`adapters/lora.py`, [code](lycoris_algos), `web/docs/<NodeId>.md`, `python -m lab.serve`", []),
        ("`.lora.up`, `W + m·ΔW`, <https://example.org/a.py>, `.host/venv/bin/python`", []),
        ("```python\nload('a/b.py')\n```\n```diff\n+++ b/adapters/new.py\n```\n", []),
    ],
)
def test_a_name_without_a_file_is_seen(text: str, found: list[str]) -> None:
    assert missing(text, ROOT) == found


def test_the_example_of_the_library_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (example,) = [body for language, body in _FENCE.findall(text) if language == "python"]
    (name,) = re.findall(r'load\("([^"]+)"\)', example)
    (layer,) = re.findall(r'adapters\["([^"]+)"\]', example)
    tensors = {"lokr_w1": torch.randn(8, 8), "lokr_w2": torch.randn(40, 40), "alpha": torch.tensor(1.0)}
    save_file({f"{layer}.{suffix}": value for suffix, value in tensors.items()}, tmp_path / name)

    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "LoKr" in done.stdout
    assert (tmp_path / "copy.safetensors").is_file()


def test_the_example_of_training_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs/training.md").read_text("utf-8")
    (example,) = [body for language, body in _FENCE.findall(text) if language == "python"]
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trained.safetensors").is_file()


def test_the_picture_of_the_rooms_is_what_the_imports_say() -> None:
    expected = picture(rooms())
    assert "adapters --> structures" in expected
    assert drawn(DOCUMENT.read_text("utf-8")) == expected, (
        "draw it again: python -m lab.architecture in tests/support"
    )


def test_the_picture_leaves_out_what_a_longer_way_says() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert without_detours(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert picture({"nodes": {"nodes/host"}, "nodes/host": set()}) == (
        'flowchart TD\n    nodes["nodes"]\n    nodes_host["nodes/host"]\n    nodes --> nodes_host\n'
    )


def test_a_document_without_a_picture_has_none() -> None:
    assert drawn("# Architecture\n") == ""
