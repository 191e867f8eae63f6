"""Names for results: inside the output folder, possible on every system, and no folder without a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

RESERVED = ("con .x", "COM¹", "lpt².txt", "CONIN$", "conout$", "con", "nul.txt", "Aux . . b", "com0")


@pytest.fixture
def saving(host: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with an output folder of its own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return host("saving")


@pytest.fixture
def errors(pack: ModuleType) -> Any:
    """The library's copy that ComfyUI runs."""
    return sys.modules[f"{pack.__name__}.lycoris_algos"]


@pytest.fixture
def save(apply: Any, comfy_nodes: dict[str, Any], saving: ModuleType) -> Callable[[str], Path]:
    """Save LyCORIS with a name; the file."""
    stack = apply.stack({tiny.CONV_IN: tiny.conv_in_lora()})
    return lambda prefix: Path(comfy_nodes["SaveLyCORIS"].execute(stack, prefix, "fp16", "as stored").args[0])


@pytest.mark.parametrize("name", RESERVED)
def test_a_name_that_windows_reserves_gets_another_beginning(name: str, saving: ModuleType) -> None:
    for prefix in (name, f"{name}/x"):
        found = saving.output_path("loras", prefix).relative_to(Path(saving.output_path("loras", "x")).parent)
        assert found.parts[0].startswith("_"), "a device without the underscore"


@pytest.mark.parametrize(
    "name",
    [
        "日" * 120,
        "🎨" * 120,
        "é" * 300,
        "d" * 5_000,
        "a\ud800b",
        "a\0b",
        "\x1b[2J",
        "\u202e",
        " . ",
        "a" * 119 + " .",
    ],
    ids=[
        "cjk",
        "emoji",
        "accents",
        "long",
        "surrogate",
        "nul",
        "escape",
        "direction",
        "blank",
        "cut at a dot",
    ],
)
@pytest.mark.parametrize("form", ["{}", "{}/x", "x/{}", "{}/{}.safetensors"])
def test_any_name_is_made_possible(name: str, form: str, save: Callable[[str], Path], tmp_path: Path) -> None:
    prefix = form.format(name, name)
    paths = [save(prefix), save(prefix)]
    assert paths[1].name.endswith("_00002.safetensors")
    for path in paths:
        assert path.is_file()
        assert path.is_relative_to(tmp_path / "output" / "loras")
        for part in path.relative_to(tmp_path).parts:
            assert len(part.encode()) <= 255 - len(".1234567890-12.part")
            assert part == part.strip()


def test_a_path_that_is_too_long_is_refused_in_words(
    save: Callable[[str], Path], errors: Any, tmp_path: Path
) -> None:
    with pytest.raises(errors.LycorisError, match="too long"):
        save("/".join("d" * 100 for _ in range(45)))
    assert [*tmp_path.glob("output/**/*")] == []


def test_a_file_where_a_folder_should_be_is_refused_in_words(
    save: Callable[[str], Path], errors: Any
) -> None:
    path = save("x")
    with pytest.raises(errors.LycorisError, match="cannot be made"):
        save(f"{path.name}/y")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_nothing_is_made_behind_a_link_that_leads_out(
    save: Callable[[str], Path], errors: Any, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = save("x").parent
    (folder / "link").symlink_to(outside)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "circle").symlink_to(folder / "circle")
    for name in ("link/new/deep/x", "link/x", "broken/new/x", "circle/x"):
        with pytest.raises(errors.LycorisError):
            save(name)
    assert [*outside.iterdir()] == []
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_that_stays_inside_is_followed(save: Callable[[str], Path]) -> None:
    folder = save("real/x").parent
    (folder.parent / "link").symlink_to(folder)
    assert save("link/new/y").resolve().parent == folder / "new"


def test_a_refused_save_leaves_no_folder(
    save: Callable[[str], Path], comfy_nodes: Any, apply: Any, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="strength"):
        comfy_nodes["SaveLyCORIS"].execute(
            apply.stack({tiny.CONV_IN: tiny.conv_in_lora()}, 0.0), "new/x", "fp16", "as stored"
        )
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("files", [0, 2])
def test_a_merge_that_is_stopped_leaves_no_folder_of_its_own(
    files: int,
    comfy_nodes: Any,
    apply: Any,
    saving: ModuleType,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.model_management
    import folder_paths

    own = folders / "checkpoints"
    own.mkdir()
    _, extensions = folder_paths.folder_names_and_paths["checkpoints"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(own)], extensions))
    folder_paths.filename_list_cache.pop("checkpoints", None)
    names = [f"blocks.{number}.linear" for number in range(8)]
    save_file(
        {f"model.diffusion_model.{name}.weight": torch.randn(24, 16) for name in names}, own / "b.safetensors"
    )
    stack = apply.stack(
        {f"lora_unet_{n.replace('.', '_')}": tiny.make("lora", torch.randn(24, 16)) for n in names}
    )
    output = Path(folder_paths.get_output_directory()) / "checkpoints"
    for number in range(files):
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{number}.txt").write_text("the user's")
    widgets = (
        "checkpoints/b.safetensors",
        stack,
        1.0,
        1.0,
        "as base",
        "new/deeper/m",
        "error if nothing matches",
    )
    said: list[str] = []

    def stop_at_the_third(text: str, _: str) -> None:
        said.append(text)
        if len(said) == 3:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(
        comfy_nodes["MergeLyCORIS"], "hidden", type("Hidden", (), {"unique_id": "7"}), raising=False
    )
    monkeypatch.setattr(sys.modules[saving.__name__.replace("saving", "progress")], "_say", stop_at_the_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        comfy_nodes["MergeLyCORIS"].execute(*widgets)
    assert not (output / "new").exists()
    assert len(said) == 3
    assert output.exists() == bool(files)


@pytest.mark.parametrize("node", ["LoadLyCORIS", "LyCORISLoader", "MergeLyCORIS"])
@pytest.mark.parametrize("value", [None, "", 5, ["a"]])
def test_a_widget_without_a_value_is_said_in_words(
    node: str, value: Any, comfy_nodes: dict[str, Any], folders: Path
) -> None:
    name = "base" if node == "MergeLyCORIS" else "lycoris_name"
    assert "no file is chosen" in comfy_nodes[node].validate_inputs(**{name: value})
