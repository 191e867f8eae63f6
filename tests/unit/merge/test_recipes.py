"""What written files say about how they were made: sources and bases by names and hashes, the same in all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from baking import bake, entry, every_block, save_base
from combining import one_per_algorithm
from safetensors.torch import save_file
from samples import Case
from torch import Tensor

import lycoris_algos
from lycoris_algos.cli import main
from lycoris_algos.io import read_header
from lycoris_algos.merge.bake import plan_bake, run_bake
from lycoris_algos.network import content_hash

LAYER = "lora_unet_block_0_to_q"


def recipe(path: Path, key: str = "lycoris_algos.recipe") -> Any:
    return json.loads(read_header(path).metadata[key])


def put(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({f"{LAYER}.{suffix}": value.contiguous() for suffix, value in tensors.items()}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(checkpoint, two LoRAs)."""
    keys = [f"model.diffusion_model.block.{number}.to_q.weight" for number in range(6)]
    save_file({key: torch.randn(32, 24) for key in keys}, tmp_path / "base.safetensors")
    one, two = (
        put(
            tmp_path / f"{name}.safetensors",
            {"lora_up.weight": torch.randn(32, 4), "lora_down.weight": torch.randn(4, 24)},
        )
        for name in ("one", "two")
    )
    return tmp_path / "base.safetensors", one, two


def test_every_command_names_its_sources_with_the_same_hash(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, one, two = files
    wanted = [(path.name, content_hash(lycoris_algos.load(path))) for path in (one, two)]
    assert wanted[0][1] != wanted[1][1]

    def found(sources: Any) -> list[tuple[str, str]]:
        return [(source["file"], source["tensors_sha256"]) for source in sources]

    out = {name: tmp_path / f"{name}.out.safetensors" for name in ("merge", "combine", "convert")}
    assert main(["merge", str(base), f"{one}:0.5", str(two), "-o", str(out["merge"]), "-q"]) == 0
    assert main(["combine", f"{one}:0.5", str(two), "-o", str(out["combine"]), "-q"]) == 0
    assert main(["convert", f"{one}:0.5", "-o", str(out["convert"])]) == 0

    assert found(recipe(out["merge"], "lycoris_algos.bake")["adapters"]) == wanted
    combined, converted = recipe(out["combine"]), recipe(out["convert"])
    assert found(combined["sources"]) == wanted
    assert found([converted["source"]]) == wanted[:1]
    assert "base" not in combined


def test_a_base_file_has_the_hash_that_a_bake_gives_it(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, one, two = files
    baked, out = tmp_path / "baked.safetensors", tmp_path / "out.safetensors"
    assert main(["merge", str(base), str(one), "-o", str(baked), "-q"]) == 0
    assert main(["combine", str(one), str(two), "-o", str(out), "--base", str(base), "-q"]) == 0
    named = recipe(out)["base"]
    assert named == recipe(baked, "lycoris_algos.bake")["base"]
    assert named["file"] == base.name
    assert named["bytes"] == base.stat().st_size


def test_recipes_of_sources_are_kept_inside(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, one, two = files
    first, second, last = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "last"))
    assert main(["combine", str(one), str(two), "-o", str(first), "-q"]) == 0
    assert main(["convert", f"{first}:0.5", "-o", str(second)]) == 0
    assert main(["merge", str(base), str(second), "-o", str(last), "-q"]) == 0
    (adapter,) = recipe(last, "lycoris_algos.bake")["adapters"]
    inner = adapter["recipe"]["source"]
    assert (adapter["file"], inner["file"]) == ("second.safetensors", "first.safetensors")
    assert inner["tensors_sha256"] == content_hash(lycoris_algos.load(first))
    assert [source["file"] for source in inner["recipe"]["sources"]] == [one.name, two.name]


def test_a_bakes_recipe_holds_that_of_a_baked_base(tmp_path: Path) -> None:
    base = save_base(tmp_path, metadata={"modelspec.title": "T", "modelspec.hash_sha256": "0xab"})
    first = bake(base, entry(every_block(), 0.5, 0.25))
    other = first.path.rename(tmp_path / "first.safetensors")
    plan = plan_bake(read_header(other), [entry(every_block(1), name="b")], base=other.name, program="P 1")
    second = run_bake(plan, other, tmp_path / "second.safetensors")
    metadata = read_header(second.path).metadata
    found = json.loads(metadata["lycoris_algos.bake"])
    assert metadata["modelspec.title"] == "T"
    assert "modelspec.hash_sha256" not in metadata
    assert found["program"] == "P 1"
    assert found["adapters"][0]["file"] == "b"
    earlier = found["base"]["recipe"]
    assert earlier["base"]["modelspec.hash_sha256"] == "0xab"
    assert (earlier["adapters"][0]["multiplier"], earlier["adapters"][0]["clip_multiplier"]) == (0.5, 0.25)
    assert earlier["adapters"][0]["tensors_sha256"] != found["adapters"][0]["tensors_sha256"]
    assert earlier["base"]["sampled_sha256"] != found["base"]["sampled_sha256"]


def test_a_resized_file_keeps_whose_it_is_and_has_its_own_ranks(tmp_path: Path) -> None:
    said = {
        "modelspec.author": "me",
        "modelspec.license": "CC-BY-4.0",
        "modelspec.description": "a description",
        "modelspec.trigger_phrase": "sks, person",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "ss_training_comment": "mine",
        "ss_tag_frequency": json.dumps({"1_x": {"sks": 3}}),
    }
    network = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4",
        "ss_network_args": json.dumps({"conv_dim": "8", "dropout": "0.1"}),
    }
    stored = {f"{LAYER}.lora_up.weight": torch.randn(32, 8), f"{LAYER}.lora_down.weight": torch.randn(8, 24)}
    hashes = {"sshs_model_hash": "0", "lora_adapter_metadata": "{}"}
    save_file(stored, tmp_path / "in.safetensors", metadata={**said, **network, **hashes})
    out = tmp_path / "out.safetensors"
    assert main(["combine", str(tmp_path / "in.safetensors"), "-o", str(out), "--rank", "4", "-q"]) == 0
    found = read_header(out).metadata
    assert {key: found.get(key) for key in said} == said
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "4")
    assert json.loads(found["ss_network_args"]) == {"conv_dim": "4", "dropout": "0.1"}
    assert not found.keys() & hashes.keys()
    other = tmp_path / "lokr.safetensors"
    command = ["combine", str(tmp_path / "in.safetensors"), "-o", str(other), "--as", "lokr", "--rank", "4"]
    assert main([*command, "-q"]) == 0
    found = read_header(other).metadata
    assert {key: found.get(key) for key in said} == said
    assert not found.keys() & network.keys()


def test_a_combination_names_all_authors(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        tensors = {"lora_up.weight": torch.randn(32, 4), "lora_down.weight": torch.randn(4, 24)}
        own = {f"{LAYER}.{suffix}": value for suffix, value in tensors.items()}
        facts = {"modelspec.author": path.stem, "modelspec.license": "MIT", "ss_network_dim": "4"}
        save_file(own, path, metadata=facts)
    out = tmp_path / "out.safetensors"
    assert main(["combine", *map(str, paths), "-o", str(out), "-q"]) == 0
    found = read_header(out).metadata
    assert (found["modelspec.author"], found["modelspec.license"]) == ("a, b", "MIT")
    assert "ss_network_dim" not in found


@pytest.mark.parametrize("case", one_per_algorithm(), ids=lambda case: case.name)
def test_a_hash_lasts_from_file_to_file(case: Case, tmp_path: Path) -> None:
    own = lycoris_algos.load(put(tmp_path / "first.safetensors", case.tensors))
    again = lycoris_algos.load(lycoris_algos.save(own, tmp_path / "second.safetensors"))
    assert content_hash(own) == content_hash(again)


def test_a_hash_sees_names_shapes_types_and_numbers() -> None:
    def hashed(up: Tensor, down: Tensor, layer: str = LAYER) -> str:
        tensors = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
        return content_hash(lycoris_algos.from_tensors(tensors))

    up, down = torch.ones(8, 2), torch.ones(2, 8)
    other = up.clone()
    other[3, 1] = 1.0000001
    hashes = {
        hashed(up, down),
        hashed(other, down),
        hashed(up, down, "lora_unet_block_1_to_q"),
        hashed(up.half(), down),
        hashed(torch.ones(4, 2), torch.ones(2, 8)),
        hashed(torch.ones(8, 2), torch.ones(2, 8, 1, 1)),
    }
    assert len(hashes) == 6
