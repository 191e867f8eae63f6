"""Which files a model is made of: one, shards with an index, or a folder as diffusers and transformers have.

A folder of diffusers has one for each component (``unet`` or ``transformer``, ``text_encoder``, ``vae`` …).
Often it has the same weights several times, as fp16 or as PyTorch's files; one copy of each is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileFormatError
from ..io import ShardIndex, index_of_shard, is_shard, read_index, variant_of_index
from ..text import Brief, listed, quoted

_PIPELINE = "model_index.json"
# Components that adapters may change, one of which a folder of components has.
_MODELS = ("unet", "transformer", "prior")
_ENCODERS = "text_encoder"
_SUFFIXES = (".safetensors", ".sft")
# What other copies of the weights end in.
_OTHER_FORMS = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf")
_COPIES = (*_SUFFIXES, *_OTHER_FORMS)
# What programs call the weights of a component, where there are other files beside them.
_USUAL = ("diffusion_pytorch_model", "model", "pytorch_model")


@dataclass(frozen=True)
class WeightsFile(Brief):
    """A file with weights: its path below the folder of the model, and the index that names it, if any.

    ``component`` begins the names of its tensors in the model: "unet/" or nothing.
    """

    path: str
    component: str = ""
    index: ShardIndex | None = None


@dataclass(frozen=True, eq=False)
class ModelFiles(Brief):
    """A model on the disk. Paths are below ``folder``, with slashes.

    ``beside`` are files that go with the weights (configurations, tokenizers …), ``left_out`` other copies of
    the weights and what only they need.
    """

    path: Path
    folder: Path
    weights: tuple[WeightsFile, ...]
    beside: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether the model is several files, so that another like it is a folder."""
        return self.folder == self.path or self.weights[0].index is not None

    @property
    def indices(self) -> dict[str, ShardIndex]:
        """The indices by their paths."""
        return {
            f"{file.path.rpartition('/')[0]}/{file.index.path.name}".lstrip("/"): file.index
            for file in self.weights
            if file.index is not None
        }


def model_files(path: Path) -> ModelFiles:
    """The files of the model at ``path``: a file, a folder, an index, or any of the shards it names.

    Raises FileFormatError, naming it, where none or several models are there, or files are missing.
    """
    try:
        is_folder = path.is_dir()
    except ValueError as error:  # a zero byte inside the path
        raise FileFormatError(f"{quoted(path.name)} is not a possible file name") from error
    if is_folder:
        return _folder(path)
    if variant_of_index(path.name) is not None:
        return ModelFiles(path, path.parent, tuple(_shards(path, "")))
    if is_shard(path.name) and path.is_file():
        return ModelFiles(path, path.parent, tuple(_shards(index_of_shard(path), "")))
    return ModelFiles(path, path.parent, (WeightsFile(path.name),))


def _folder(path: Path) -> ModelFiles:
    is_pipeline = (path / _PIPELINE).is_file() or any((path / name).is_dir() for name in _MODELS)
    weights: list[WeightsFile] = []
    beside: list[str] = []
    left_out: list[str] = []
    for component in [path, *_folders(path)] if is_pipeline else [path]:
        prefix = "" if component == path else f"{component.name}/"
        present = [own.name for own in _visible(component) if own.is_file()]
        # What lies beside the components are copies of all of them in one file.
        own = [] if is_pipeline and not prefix else list(_weights(component, present, prefix))
        read = {file.path for file in own}
        read |= {f"{prefix}{file.index.path.name}" for file in own if file.index is not None}
        rest = [f"{prefix}{name}" for name in present if f"{prefix}{name}" not in read]
        copies = [name for name in rest if _is_copy(name)] if own or not prefix else []
        weights += own
        left_out += copies
        beside += [name for name in rest if name not in copies]
    if not any(_may_change(file.component) for file in weights):
        raise FileFormatError(
            f"folder {quoted(path.name)}: it holds no model in safetensors files. Give the folder that has "
            f"{_PIPELINE}, a folder of one component, or a file"
        )
    return ModelFiles(path, path, tuple(weights), tuple(beside), tuple(left_out))


def _may_change(component: str) -> bool:
    return not component or component.startswith((*_MODELS, _ENCODERS))


def _weights(folder: Path, names: Sequence[str], prefix: str) -> Iterator[WeightsFile]:
    """The one copy of the weights in ``folder`` that is read; nothing if it has none."""
    copies = {name: _variant(name) for name in names if _variant(name) is not None}
    plain = [name for name, variant in copies.items() if not variant] or list(copies)
    if len(plain) > 1:
        plain = [name for name in plain if name.split(".")[0] in _USUAL] or plain
    if len(plain) > 1:
        raise FileFormatError(
            f"folder {quoted(folder.name)}: it holds several models, {listed(plain, show=quoted)}: "
            "give one of them"
        )
    if plain and plain[0].endswith(".json"):
        yield from _shards(folder / plain[0], prefix)
    elif plain:
        yield WeightsFile(prefix + plain[0], prefix)
    elif _may_change(prefix) and any(_is_copy(name) for name in names):
        other = next(name for name in names if _is_copy(name))
        raise FileFormatError(
            f"folder {quoted(folder.name)}: its weights are not there as safetensors, only as "
            f"{quoted(other)}: save it as safetensors with the program that made it"
        )


def _shards(index: Path, prefix: str) -> Iterator[WeightsFile]:
    read = read_index(index)
    return (WeightsFile(prefix + name, prefix, read) for name in read.files)


def _variant(name: str) -> str | None:
    """Which variant ("fp16", or "") of weights a file called ``name`` or an index has; None for others."""
    if name.endswith(_SUFFIXES) and not is_shard(name):
        return name.rpartition(".")[0].partition(".")[2]
    return variant_of_index(name)


def _is_copy(name: str) -> bool:
    return name.endswith((*_COPIES, ".index.json")) or variant_of_index(name.rpartition("/")[2]) is not None


def _folders(path: Path) -> list[Path]:
    return [own for own in _visible(path) if own.is_dir()]


def _visible(path: Path) -> list[Path]:
    try:
        return sorted(own for own in path.iterdir() if not own.name.startswith("."))
    except OSError as error:
        raise FileFormatError(
            f"folder {quoted(path.name)} cannot be read: {error.strerror or error}"
        ) from error
