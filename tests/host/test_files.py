"""Which file a name means, what is offered, and that a replaced file is seen."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch


def adapters_of(stack: Any) -> Any:
    (entry,) = stack
    return entry.adapters


def is_lora(adapters: Any, seed: str) -> bool:
    """Whether that is the file written from ``tiny.conv_in_lora(seed)``."""
    found = adapters[tiny.CONV_IN].to_tensors()["lora_up.weight"]
    return torch.equal(found, tiny.conv_in_lora(seed)["lora_up.weight"])


def options_of(node: Any) -> list[str]:
    """The file names that a node offers now."""
    (combo,) = (item for item in node.define_schema().inputs if item.id == "lycoris_name")
    return list(combo.options)


def test_files_of_both_folders_and_of_subfolders_are_offered(
    comfy_nodes: dict[str, Any], folders: Path
) -> None:
    tiny.put(folders, "a.safetensors")
    tiny.put(folders, "sub/deeper/b.safetensors")
    tiny.put(folders, "c.safetensors", folder="lycoris")
    tiny.put(folders, "own/d.safetensors", folder="lycoris")
    (folders / "loras" / "readme.txt").write_text("no adapter")
    (folders / "lycoris" / "preview.png").write_bytes(b"no adapter")

    for node_id in ("LoadLyCORIS", "LyCORISLoader"):
        names = {name.replace("\\", "/") for name in options_of(comfy_nodes[node_id])}
        assert names == {"a.safetensors", "sub/deeper/b.safetensors", "c.safetensors", "own/d.safetensors"}


def test_a_new_file_is_offered_on_the_next_look(load_node: Any, folders: Path) -> None:
    assert options_of(load_node) == []
    tiny.put(folders, "new.safetensors")

    assert options_of(load_node) == ["new.safetensors"]


@pytest.mark.parametrize("name", ["same.safetensors", "sub/same.safetensors"])
def test_one_name_in_both_folders_means_two_files(name: str, load_node: Any, folders: Path) -> None:
    tiny.put(folders, name, tiny.conv_in_lora("loras"))
    tiny.put(folders, name, tiny.conv_in_lora("lycoris"), folder="lycoris")

    names = options_of(load_node)

    assert len(names) == 2
    found = {}
    for offered in names:
        assert load_node.validate_inputs(offered) is True
        found[offered] = adapters_of(load_node.execute(offered, 1.0, 1.0).args[0])
    assert is_lora(found.pop(name), "loras"), "core's Load LoRA calls it so"
    (of_lycoris,) = found.values()
    assert is_lora(of_lycoris, "lycoris")


@pytest.mark.skipif(sys.platform == "win32", reason="no such file names there")
@pytest.mark.parametrize("folder", ["loras", "lycoris"])
def test_a_name_that_would_be_html_in_the_list(folder: str, load_node: Any, folders: Path) -> None:
    name = "<img src=x onerror=alert(1)> R&B.safetensors"
    tiny.put(folders, name, folder=folder)

    assert options_of(load_node) == [name.replace("<", "‹")]
    for meant in (name, *options_of(load_node)):
        assert load_node.validate_inputs(meant) is True
        assert is_lora(adapters_of(load_node.execute(meant, 1.0, 1.0).args[0]), "")


def test_a_folder_of_loras_may_be_called_lycoris(load_node: Any, folders: Path) -> None:
    """A usual habit. What core's Load LoRA calls "lycoris/y" must not be another file here."""
    tiny.put(folders, "lycoris/y.safetensors", tiny.conv_in_lora("loras"))
    tiny.put(folders, "y.safetensors", tiny.conv_in_lora("lycoris"), folder="lycoris")

    for name, seed in (("lycoris/y.safetensors", "loras"), ("y.safetensors", "lycoris")):
        assert name in options_of(load_node)
        assert is_lora(adapters_of(load_node.execute(name, 1.0, 1.0).args[0]), seed), name


def test_every_offered_name_can_be_loaded(load_node: Any, folders: Path) -> None:
    tiny.put(folders, "x.safetensors")
    tiny.put(folders, "lycoris/x.safetensors")  # a folder of loras that is called like the other one
    tiny.put(folders, "x.safetensors", folder="lycoris")
    tiny.put(folders, "ünïcödé & spaces.safetensors")

    names = options_of(load_node)

    paths = set()
    for name in names:
        assert load_node.validate_inputs(name) is True
        assert load_node.execute(name, 1.0, 1.0).args[0]
        paths.add(load_node.fingerprint_inputs(name))
    assert len(names) == 4
    assert len(paths) == 4, "two names mean one file"


@pytest.mark.parametrize("node_id", ["LoadLyCORIS", "LyCORISLoader"])
def test_a_missing_file(node_id: str, comfy_nodes: dict[str, Any], load_node: Any, folders: Path) -> None:
    node = comfy_nodes[node_id]

    answer = node.validate_inputs("gone.safetensors")

    assert isinstance(answer, str)
    assert "gone.safetensors" in answer
    assert node.fingerprint_inputs("gone.safetensors"), "asking must not fail"
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load_node.execute("gone.safetensors", 1.0, 1.0)


@pytest.mark.parametrize("node_id", ["LoadLyCORIS", "LyCORISLoader"])
def test_names_do_not_lead_out_of_the_folders(
    node_id: str, comfy_nodes: dict[str, Any], folders: Path
) -> None:
    outside = tiny.put(folders, "secret.safetensors", folder="outside")
    tiny.put(folders, "inside.safetensors")
    node = comfy_nodes[node_id]
    names = [
        "../outside/secret.safetensors",
        "../../secret.safetensors",
        "sub/../../outside/secret.safetensors",
        "lycoris/../../outside/secret.safetensors",
        "..\\outside\\secret.safetensors",
        str(outside),
        f"/{outside}",
        f"lycoris/{outside}",
        "file://" + str(outside),
        "",
        ".",
        "..",
        "sub",
        "inside.safetensors\0.txt",
    ]
    (folders / "loras" / "sub").mkdir()

    for name in names:
        assert isinstance(node.validate_inputs(name), str), f"{name!r} is accepted"
        with pytest.raises((FileNotFoundError, ValueError)):
            comfy_nodes["LoadLyCORIS"].execute(name, 1.0, 1.0)
        assert isinstance(node.fingerprint_inputs(name), str), "asking must not fail"


@pytest.mark.parametrize("node_id", ["LoadLyCORIS", "LyCORISLoader"])
def test_fingerprints_follow_the_file(node_id: str, comfy_nodes: dict[str, Any], folders: Path) -> None:
    node = comfy_nodes[node_id]
    path = tiny.put(folders, "work.safetensors", tiny.conv_in_lora("before"))
    first = node.fingerprint_inputs("work.safetensors")
    assert node.fingerprint_inputs("work.safetensors") == first

    tiny.put(folders, "work.safetensors", tiny.conv_in_lora("after"))
    os.utime(path, ns=(1, 10**18))
    second = node.fingerprint_inputs("work.safetensors")
    assert second != first

    path.unlink()
    assert node.fingerprint_inputs("work.safetensors") not in (first, second)


def test_a_file_is_read_once_and_a_replaced_one_again(load_node: Any, folders: Path) -> None:
    path = tiny.put(folders, "work.safetensors", tiny.conv_in_lora("before"))
    first = adapters_of(load_node.execute("work.safetensors", 1.0, 1.0).args[0])
    again = adapters_of(load_node.execute("work.safetensors", 0.5, 1.0).args[0])
    assert again is first

    tiny.put(folders, "work.safetensors", tiny.conv_in_lora("after"))
    os.utime(path, ns=(1, 10**18))
    second = adapters_of(load_node.execute("work.safetensors", 1.0, 1.0).args[0])

    assert second is not first
    assert is_lora(second, "after")
    assert is_lora(first, "before"), "what is in use has changed with the file"


def test_only_the_newest_version_of_a_retrained_file_is_kept(
    load_node: Any, folders: Path, host: Any
) -> None:
    path = tiny.put(folders, "retrained.safetensors", tiny.conv_in_lora("before"))
    tiny.put(folders, "beside.safetensors", tiny.conv_in_lora("before"))
    load_node.execute("beside.safetensors", 1.0, 1.0)
    for version in range(5):
        os.utime(path, ns=(1, 10**18 + version))
        newest = adapters_of(load_node.execute("retrained.safetensors", 1.0, 1.0).args[0])

    kept = host("files").LOADED.kept
    assert [item for item in kept if item.name == "retrained.safetensors"] == [newest]
    assert "beside.safetensors" in [item.name for item in kept]


def test_the_same_file_under_two_names_is_the_same_change(
    sd15: tuple[Any, Any], load_node: Any, folders: Path, apply: Any
) -> None:
    model, _ = sd15
    path = tiny.put(folders, "one.safetensors")
    shutil.copy(path, folders / "lycoris" / "two.safetensors")
    weight = tiny.parameter(model, tiny.CONV_IN_KEY).clone()

    stacks = [load_node.execute(name, 1.0, 1.0).args[0] for name in ("one.safetensors", "two.safetensors")]
    patched, _, _ = apply(model, *stacks)

    with tiny.loaded(patched) as now:
        tiny.assert_weight(
            now(tiny.CONV_IN_KEY),
            tiny.changed(weight, (tiny.conv_in_lora(), 1.0), (tiny.conv_in_lora(), 1.0)),
        )


def test_the_file_can_be_deleted_while_it_is_in_use(
    sd15: tuple[Any, Any], load_node: Any, folders: Path, apply: Any
) -> None:
    model, _ = sd15
    path = tiny.put(folders, "one.safetensors")
    stack = load_node.execute("one.safetensors", 1.0, 1.0).args[0]
    path.write_bytes(b"\0" * path.stat().st_size)
    path.unlink()
    weight = tiny.parameter(model, tiny.CONV_IN_KEY).clone()

    patched, _, _ = apply(model, stack)

    with tiny.loaded(patched) as now:
        tiny.assert_weight(now(tiny.CONV_IN_KEY), tiny.changed(weight, (tiny.conv_in_lora(), 1.0)))
