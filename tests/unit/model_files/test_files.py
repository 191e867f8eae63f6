"""Which files a model is made of, read as one; and what is refused about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import save_pipeline, save_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lycoris_algos.errors import FileFormatError
from lycoris_algos.io import index_bytes, read_index
from lycoris_algos.model_files import Checkpoint, model_files

TENSORS = {f"block.{number}.weight": torch.full((2, 3), float(number)) for number in range(7)}


def same(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint) == tensors.keys() == set(checkpoint.header.tensors)
    assert len(checkpoint) == len(tensors)
    for name, value in tensors.items():
        assert torch.equal(checkpoint[name], value)
        out = torch.empty_like(value)
        checkpoint.read_into(name, out)
        assert torch.equal(out, value)


def test_one_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"title": "x"})
    with Checkpoint(tmp_path / "a.safetensors") as checkpoint:
        same(checkpoint, TENSORS)
        assert checkpoint.metadata == {"title": "x"}
        assert not checkpoint.files.is_folder


@pytest.mark.parametrize("opened", ["index", "shard", "folder"])
def test_shards(opened: str, tmp_path: Path) -> None:
    index = save_shards(tmp_path, TENSORS)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    with Checkpoint({"index": index, "shard": shard, "folder": tmp_path}[opened]) as checkpoint:
        same(checkpoint, TENSORS)
        assert checkpoint.files.is_folder
        assert checkpoint.record("m")["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("*.safe*s"))


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    unet = {"conv_in.weight": torch.ones(4, 4, 3, 3)}
    folder = save_pipeline(
        tmp_path / "p", {"unet": unet, "text_encoder": TENSORS, "vae": unet}, "text_encoder"
    )
    save_file(unet, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old")
    save_file(unet, folder / "whole.safetensors")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"kept")
    (folder / ".cache").mkdir()
    with Checkpoint(folder) as checkpoint:
        expected = {
            "unet/conv_in.weight": unet["conv_in.weight"],
            "vae/conv_in.weight": unet["conv_in.weight"],
        }
        same(checkpoint, expected | {f"text_encoder/{key}": value for key, value in TENSORS.items()})
        files = checkpoint.files
    assert files.left_out == (
        "whole.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    )
    assert {"README.md", "model_index.json", "unet/config.json", "tokenizer/vocab.json"} <= {*files.beside}
    assert "safety_checker/pytorch_model.bin" in files.beside
    assert [*files.indices] == ["text_encoder/model.safetensors.index.json"]


def test_a_variant_that_is_alone_is_read(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "p", {"transformer": TENSORS})
    plain = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with Checkpoint(folder) as checkpoint:
        assert len(checkpoint) == len(TENSORS)


def test_folders_that_are_no_model_or_several(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"holds no model in safetensors files.*model_index\.json"):
        model_files(tmp_path)
    with pytest.raises(FileFormatError, match="no such file"):
        Checkpoint(tmp_path / "missing.safetensors")
    for name in ("a", "b"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(FileFormatError, match=r"holds several models, a\.safetensors|several models, 'a"):
        model_files(tmp_path)
    pipeline = save_pipeline(tmp_path / "p", {"unet": TENSORS})
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileFormatError, match=r"only as 'diffusion_pytorch_model\.bin'"):
        model_files(pipeline)


# ---- hostile indices ------------------------------------------------------------------------------------


def changed(index: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads(index.read_text())
    change(table)
    index.write_text(json.dumps(table))


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/secret.safetensors",
        "C:\\secret.safetensors",
        "C:secret.safetensors",
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
    ],
)
def test_an_index_reaches_nothing_but_files_beside_it(file: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "sub").mkdir(parents=True)
    for folder in (tmp_path, own / "sub"):
        save_file(TENSORS, folder / "secret.safetensors")
    index = save_shards(own, TENSORS)
    changed(index, lambda table: table["weight_map"].update({"block.0.weight": file}))
    with pytest.raises(
        FileFormatError, match=r"model\.safetensors\.index\.json.*no safetensors file beside it"
    ):
        Checkpoint(index)


def test_shards_that_are_missing_or_differ_from_the_index(tmp_path: Path) -> None:
    index = save_shards(tmp_path, TENSORS)
    shards = sorted(tmp_path.glob("*.safetensors"))
    whole = [path.read_bytes() for path in shards]

    shards[1].unlink()
    with pytest.raises(FileFormatError, match=r"its shard 'model-00002-of-00003.safetensors' is not there"):
        Checkpoint(shards[0])
    save_file({**dict(list(TENSORS.items())[1::3]), "block.0.weight": torch.ones(1)}, shards[1])
    with pytest.raises(FileFormatError, match=r"'block.0.weight' is in .*00002.* says that it is in .*00001"):
        Checkpoint(index)
    save_file({**dict(list(TENSORS.items())[1::3]), "more": torch.ones(1)}, shards[1])
    with pytest.raises(FileFormatError, match="holds 'more', which its index does not name"):
        Checkpoint(index)
    save_file({"block.1.weight": torch.ones(1)}, shards[1])
    with pytest.raises(FileFormatError, match=r"lacks 'block.4.weight'"):
        Checkpoint(index)
    shards[1].write_bytes(whole[1][:-1])
    with pytest.raises(FileFormatError, match=r"'model-00002-of-00003.safetensors'.*cut off"):
        Checkpoint(index)
    shards[1].write_bytes(whole[1])
    index.unlink()
    with pytest.raises(FileFormatError, match=r"one of 3 shards .* 'model\.safetensors\.index\.json'"):
        Checkpoint(shards[0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "no name of a file"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "names 'a' twice"),
        ('{"weight_map": {"\\ud800": "x.safetensors"}}', "broken character"),
        ('{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        (
            json.dumps({"weight_map": {str(number): "x.safetensors" for number in range(70_000)}}),
            "no model has more than",
        ),
        (
            json.dumps({"weight_map": {str(number): f"{number}.safetensors" for number in range(3_000)}}),
            "names 3,000 files",
        ),
        (" " * (65 << 20), "larger than that of any model"),
    ],
)
def test_broken_indices(text: str, reason: str, tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(FileFormatError, match=rf"'m\.safetensors\.index\.json'.*{reason}"):
        read_index(index)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_index_is_read_or_refused(data: bytes, tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_bytes(data)
    with pytest.raises(FileFormatError):
        read_index(index)


def test_an_index_there_and_back(tmp_path: Path) -> None:
    index = read_index(save_shards(tmp_path, TENSORS))
    written = json.loads(index_bytes(index.weight_map, 5, index.metadata))
    assert written == {"metadata": {"total_size": 5, "by": "test"}, "weight_map": dict(index.weight_map)}
