"""``save`` and ``load`` are inverses, bit for bit, in every dialect and dtype; and safetensors agrees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracles import same_bits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples import CASES
from torch import Tensor

from lycoris_algos import AdapterSet, LayerAdapter, from_tensors, load, save
from lycoris_algos.network import content_hash, to_tensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
#: Layer names as a dialect spells them, and other spellings of suffixes that its files may have.
DIALECTS = {
    "kohya": ("lora_unet_down_blocks_{}_to_q", {}),
    "lycoris": ("lycoris_transformer_blocks_{}_attn", {}),
    "comfy": (
        "diffusion_model.blocks.{}.attn",
        {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"},
    ),
    "unknown": ("nobody.blocks.{}.attn", {}),
}
METADATA = {
    "ss_network_args": json.dumps({"algo": "lokr", "factor": 8}),
    "ss_tag_frequency": json.dumps({"10_ñandú": {"ünï, cødé": 3, "日本": 1}}, ensure_ascii=False),
    "empty": "",
}


def file_of_every_sample(
    dialect: str, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The tensors of a file that holds each sample as a layer; and the same by layer and LyCORIS' suffix."""
    name, spelling = DIALECTS[dialect]
    layers = {name.format(number): case.stored(dtype) for number, case in enumerate(CASES)}
    stored = {
        f"{layer}.{spelling.get(suffix, suffix)}": value
        for layer, tensors in layers.items()
        for suffix, value in tensors.items()
    }
    # A bias of PEFT's lora_B is a plain one, once it is read.
    read = {
        layer: {"diff_b" if suffix == "lora_B.bias" else suffix: value for suffix, value in tensors.items()}
        for layer, tensors in layers.items()
    }
    return stored, read


def check_same(adapters: AdapterSet, layers: dict[str, dict[str, Tensor]]) -> None:
    assert adapters.keys() == layers.keys()
    assert adapters.unmatched == ()
    for layer, tensors in layers.items():
        held = {suffix for part in adapters[layer].components() for suffix, _ in part.tensors()}
        got = adapters[layer].to_tensors()
        assert got.keys() == tensors.keys(), layer
        for suffix, value in tensors.items():
            if suffix in held:
                assert same_bits(got[suffix], value), (layer, suffix)
            else:  # alpha is a number, whatever it was stored as
                assert torch.equal(got[suffix].double().flatten(), value.double().flatten()), (layer, suffix)


@pytest.mark.parametrize(
    ("dialect", "dtype"),
    [
        (dialect, dtype)
        for dialect in DIALECTS
        for dtype in DTYPES
        if dialect != "unknown" or dtype == DTYPES[1]
    ],
    ids=str,
)
def test_every_sample_survives(dialect: str, dtype: torch.dtype, tmp_path: Path) -> None:
    stored, layers = file_of_every_sample(dialect, dtype)
    save_file(stored, tmp_path / "trained.safetensors", METADATA)
    first = load(tmp_path / "trained.safetensors")
    assert first.dialect == dialect
    assert first.metadata == METADATA
    check_same(first, layers)

    path = save(first, tmp_path / "again.safetensors")
    assert path == tmp_path / "again.safetensors"
    again = load(path)
    assert (again.dialect, again.metadata, again.name) == (dialect, METADATA, "again.safetensors")
    check_same(again, layers)

    # The official library reads the same, under LyCORIS' suffixes.
    official = load_file(path)
    assert official.keys() == {f"{layer}.{suffix}" for layer, tensors in layers.items() for suffix in tensors}
    assert all(same_bits(value, to_tensors(again)[key]) for key, value in official.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA

    # A set that was saved is saved again byte for byte.
    assert save(again, tmp_path / "third.safetensors").read_bytes() == path.read_bytes()


def small_set(layer: str = "lora_unet_a") -> AdapterSet:
    return from_tensors(
        {f"{layer}.lora_up.weight": torch.ones(4, 2), f"{layer}.lora_down.weight": torch.ones(2, 3)},
        {"a": "b"},
    )


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"precious")
    written = save(small_set(), path)
    assert written != path
    assert written.parent == tmp_path
    assert path.read_bytes() == b"precious"
    assert list(load(written)) == ["lora_unet_a"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, written.name])


def test_a_path_may_be_a_string_and_a_set_may_be_empty_of_metadata(tmp_path: Path) -> None:
    layer = LayerAdapter.from_tensors({"diff_b": torch.ones(3)})
    path = save(AdapterSet({"lycoris_x": layer}), str(tmp_path / "x.safetensors"))
    adapters = load(path)
    assert adapters.metadata == {}
    assert list(adapters) == ["lycoris_x"]


def test_keys_are_layer_and_suffix() -> None:
    adapters = small_set("diffusion_model.a.b")
    tensors = to_tensors(adapters)
    assert list(tensors) == ["diffusion_model.a.b.lora_up.weight", "diffusion_model.a.b.lora_down.weight"]
    assert (
        tensors["diffusion_model.a.b.lora_up.weight"]
        is adapters["diffusion_model.a.b"].to_tensors()["lora_up.weight"]
    )


def test_saving_does_not_change_what_is_saved(tmp_path: Path) -> None:
    adapters = small_set()
    before = {key: value.clone() for key, value in to_tensors(adapters).items()}
    save(adapters, tmp_path / "x.safetensors")
    assert all(same_bits(value, before[key]) for key, value in to_tensors(adapters).items())


def test_a_number_that_a_torch_file_stores_as_a_view(tmp_path: Path) -> None:
    layer = "lora_unet_a"
    stored = {f"{layer}.lora_up.weight": torch.ones(4, 1), f"{layer}.lora_down.weight": torch.ones(1, 4)}
    torch.save({**stored, f"{layer}.diff_b": torch.ones(()).expand(1)}, tmp_path / "x.pt")
    adapters = load(tmp_path / "x.pt")
    assert content_hash(load(save(adapters, tmp_path / "x.safetensors"))) == content_hash(adapters)


def test_tensors_that_are_views_are_saved_as_what_they_show(tmp_path: Path) -> None:
    wide = torch.arange(24.0).reshape(4, 6)
    stored = {"lora_unet_a.lora_up.weight": wide[:, :2], "lora_unet_a.lora_down.weight": wide[:, :2].T}
    out = load(save(from_tensors(stored), tmp_path / "x.safetensors"))["lora_unet_a"].to_tensors()
    assert torch.equal(out["lora_up.weight"], wide[:, :2])
    assert torch.equal(out["lora_down.weight"], wide[:, :2].T)
