"""The parts of the lab that decide something: a test bench that is wrong makes every test wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from lab import images, install, make_examples, models, paths, workflows


@pytest.mark.parametrize("name", ["../evil.py", "sub/../../evil.py", "/evil.py", "C:/evil.py", "..\\evil.py"])
def test_unpacking_refuses_names_that_leave_the_folder(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(f"app/{name}", "")

    with pytest.raises(install.InstallError, match="unsafe name"):
        install.unpack(archive, "app/", tmp_path / "out", set())


def test_unpacking_takes_the_files_below_the_prefix_only(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for name in ("app/main.py", "app/sub/x.py", "app/skipped.yaml", "other/y.py"):
            members.writestr(name, name)

    assert install.unpack(archive, "app/", tmp_path / "out", {"skipped.yaml"}) == 2
    assert (tmp_path / "out" / "sub" / "x.py").read_text("utf-8") == "app/sub/x.py"
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.*")) == ["main.py", "x.py"]


def test_an_interrupted_install_is_not_stamped(tmp_path: Path) -> None:
    stamp = install.Stamp(tmp_path / "installed.json")
    stamp.set("host", "1")

    again = install.Stamp(tmp_path / "installed.json")

    assert again.is_current("host", "1")
    assert not again.is_current("host", "2")
    assert not again.is_current("dev", "1")


def test_what_pip_says_is_seen_and_a_failure_has_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "LAB", tmp_path)

    with pytest.raises(install.InstallError, match=r"above and in .*pip\.log"):
        install._pip("install", "--no-index", "there-is-no-such-package")

    assert "there-is-no-such-package" in "".join(capfd.readouterr())
    assert "there-is-no-such-package" in (tmp_path / "pip.log").read_text("utf-8")


@pytest.mark.parametrize("dev", [True, False])
def test_the_first_run_says_what_it_brings(dev: bool) -> None:
    text = install._announcement(dev=dev)

    assert str(paths.LAB) in text
    assert "GB" in text
    assert ("developers" in text) is dev


@pytest.mark.parametrize("name", workflows.names())
def test_the_plain_workflow_has_the_models_straight_from_the_loader(name: str) -> None:
    prompt = workflows.load(name)

    plain = workflows.plain(prompt)

    assert workflows.ours(prompt)
    assert not workflows.ours(plain)
    assert not [node for node in plain.values() if node["class_type"] == "PreviewAny"]
    sampler = next(node for node in plain.values() if node["class_type"] == "KSampler")
    prompts = [plain[sampler["inputs"][side][0]] for side in ("positive", "negative")]
    assert sampler["inputs"]["model"] == ["1", 0]
    assert [node["inputs"]["clip"] for node in prompts] == [["1", 1], ["1", 1]]


def test_examples_hold_nothing_of_the_machine_that_made_them() -> None:
    for path in paths.EXAMPLE_WORKFLOWS.glob("*.json"):
        text = path.read_text("utf-8")
        assert json.loads(make_examples.tidy(text, path.stem)) == json.loads(text), path.name


def test_setting_an_input_that_a_node_does_not_have_is_an_error() -> None:
    with pytest.raises(KeyError, match="strenght"):
        workflows.with_inputs(workflows.load("LyCORISLoader"), "LyCORISLoader", strenght=1.0)


def test_a_strength_is_set_at_every_node_of_the_pack() -> None:
    prompt = workflows.with_strength(workflows.load("StackLyCORIS"), 0.25)

    strengths = [
        value
        for node in prompt.values()
        for name, value in node["inputs"].items()
        if name.startswith("strength")
    ]
    assert strengths == [0.25] * 6


def test_pictures_are_compared_by_their_values() -> None:
    dark = np.zeros((4, 4, 3), np.uint8)
    bright = dark + np.uint8(255)

    assert images.identical(dark, dark.copy())
    assert not images.identical(dark, bright)
    assert images.mean_difference(dark, bright) == 255
    assert images.max_difference(bright, dark) == 255


def test_a_file_that_is_no_safetensors_file_has_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x04" + b"\0" * 7 + b"nope"):
        path.write_bytes(content)
        assert models.read_metadata(path) == {}
    assert models.read_metadata(tmp_path / "absent") == {}
