"""An outline: what a file's header and small tensors tell, without reading the rest."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import CASES, Case

from lycoris_algos import describe, from_tensors, load
from lycoris_algos.network import outline


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_tells_the_same(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"lora_unet_x.{suffix}": value.contiguous() for suffix, value in case.tensors.items()}
    path = tmp_path / "own.safetensors"
    save_file(tensors, path)
    monkeypatch.setattr(import_module("lycoris_algos.network.load"), "_SMALL", 16)  # the samples are small
    whole, own = load(path), outline(path)
    assert describe(own) == describe(whole)
    assert own.size_bytes == whole.size_bytes
    for name, layer in whole.items():
        assert own[name].titles == layer.titles
        assert own[name].matrix_shape == layer.matrix_shape
        large = [t for item in own[name].components() for _, t in item.tensors() if t.nbytes > 16]
        assert all(tensor.is_meta for tensor in large)


def test_bundled_embeddings_are_outlined(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_x.lora_up.weight": torch.ones(4, 2),
        "lora_unet_x.lora_down.weight": torch.ones(2, 4),
        "bundle_emb.word.clip_l": torch.ones(4, 768),
    }
    path = tmp_path / "own.safetensors"
    save_file(tensors, path)
    assert describe(outline(path)) == describe(from_tensors(tensors, name=path.name))
    assert "embedding 'word'" in describe(outline(path))


def test_a_pytorch_file_has_no_header_and_is_loaded(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_x.lora_up.weight": torch.ones(4, 2),
        "lora_unet_x.lora_down.weight": torch.ones(2, 4),
    }
    path = tmp_path / "own.pt"
    torch.save(tensors, path)
    assert describe(outline(path)) == describe(load(path))


def test_the_configuration_beside_the_file_counts(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.x.lora_A.weight": torch.ones(2, 4000),
        "base_model.model.x.lora_B.weight": torch.ones(4000, 2),
    }
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors, path)
    path.with_name("adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 6, "r": 2}')
    assert describe(outline(path)) == describe(load(path))
    assert "alpha 6" in describe(outline(path))
