"""The pictures of every view, drawn for real; and that nothing else needs what draws them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from inspected import entry, found

from lycoris_algos import LycorisError
from lycoris_algos.inspection import View, can_draw, draw, inspect, save_picture

pytest.importorskip("matplotlib")


def svg_text(path: Path) -> str:
    """The words of an SVG, which matplotlib keeps as comments beside their outlines."""
    return path.read_text("utf-8")


@pytest.mark.parametrize("view", View, ids=lambda view: view.value)
def test_every_view_is_a_picture(view: View) -> None:
    picture = draw(found(view, "one.safetensors", "two.safetensors"))
    assert picture.shape == (1, 600, 960, 3)
    assert picture.dtype == torch.float32
    assert (float(picture.min()), float(picture.max())) == (0.0, 1.0)
    inked = (picture < 0.9).any(dim=-1).double().mean()
    assert 0.01 < float(inked) < 0.95


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (View.ENERGY, ("Where the strength sits", "block of the model", "kind of layer", "at multiplier 1")),
        (View.SPECTRA, ("number of the singular value", "effective rank", "block of the model")),
        (View.RELATIVE, ("at multiplier 1", "stands out", "block of the model")),
        (View.COMPARE, ("cosine of the changes", "norm of sum / sum of norms", "block of the model")),
        (View.QUANTISATION, ("share of weights that move", "fp8 e4m3, at random", "block of the model")),
        (View.OVERVIEW, ("size in MB", "kind of layer", "algorithm")),
    ],
    ids=lambda value: value.value if isinstance(value, View) else "",
)
def test_axes_and_units_are_named(view: View, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    save_picture(found(view, "one.safetensors", "two.safetensors"), path)
    text = svg_text(path)
    ElementTree.fromstring(text)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("view", View, ids=lambda view: view.value)
@pytest.mark.parametrize("files", [1, 2], ids=["alone", "two"])
def test_what_could_not_be_measured_is_said_in_the_picture(view: View, files: int) -> None:
    draw(inspect([entry(str(number), number) for number in range(files)], view))


@pytest.mark.parametrize("name", ["$x^{$", "a$b$", "名前", "<b>", "\x1b[31m", "x" * 500])
def test_any_name_can_be_drawn(name: str) -> None:
    draw(found(View.ENERGY, name, name))
    draw(found(View.COMPARE, name, name))


def test_a_picture_never_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save_picture(found(View.ENERGY, "one"), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileExistsError):
        save_picture(found(View.ENERGY, "one"), path)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LycorisError, match=r"\.png, \.svg or \.pdf"):
        save_picture(found(View.ENERGY, "one"), tmp_path / "picture.exe")
    assert list(tmp_path.iterdir()) == []


_WITHOUT = """
import sys
sys.modules["matplotlib"] = None
from inspected import found
from lycoris_algos import LycorisError
from lycoris_algos.inspection import View, can_draw, draw, text_of
assert not can_draw()
for view in View:
    own = found(view, "one", "two")
    assert text_of(own) and own.to_json()
    try:
        draw(own)
    except LycorisError as error:
        assert "pip install matplotlib" in str(error)
    else:
        raise AssertionError("drawn by what is not there")
"""


def test_texts_and_documents_need_no_matplotlib() -> None:
    assert can_draw()
    root = Path(__file__).resolve().parents[3]
    code = f"import sys; sys.path[:0] = {[str(root), str(root / 'tests' / 'support')]!r}\n{_WITHOUT}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
