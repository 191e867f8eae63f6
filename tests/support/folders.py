"""Models of several files: shards with their index, and folders as diffusers writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = Mapping[str, Tensor]


def save_shards(folder: Path, tensors: Tensors, count: int = 3, stem: str = "model") -> Path:
    """``tensors`` dealt out to so many shards; answers their index."""
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
        own = dict(list(tensors.items())[number::count])
        save_file(own, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(own, name))
    total = sum(value.numel() * value.itemsize for value in tensors.values())
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total, "by": "test"}, "weight_map": weight_map}))
    return index


def save_pipeline(folder: Path, components: Mapping[str, Tensors], sharded: str = "") -> Path:
    """A folder of diffusers: each component in its own, one of them in shards."""
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "README.md").write_text("a model")
    for name, tensors in components.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"of": name}))
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        if name == sharded:
            save_shards(folder / name, tensors, 2, stem)
        else:
            save_file(dict(tensors), folder / name / f"{stem}.safetensors")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 1}')
    return folder


def all_files(folder: Path) -> list[str]:
    """Every file below ``folder``, hidden ones as well."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def load_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors of the safetensors files in ``folder``."""
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}
