"""The real ComfyUI in this process: its tiny models, our nodes, and folders for adapter files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from lab import models, paths
from safetensors.torch import load_file, save_file

#: Combine LyCORIS' widgets.
_COMBINE: dict[str, Any] = {
    "method": "sum",
    "density": 0.5,
    "lambda": 1.0,
    "epsilon": 0.2,
    "gamma": 0.01,
    "seed": 0,
    "output": "same",
    "rank_control": "exact",
    "rank": 32,
    "threshold": 0.95,
    "budget_mb": 100.0,
    "dtype": "fp32",
}


@pytest.fixture(autouse=True)
def _inference_mode() -> Iterator[None]:
    """ComfyUI runs every node so, and some of its code works in no other mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _unloaded() -> Iterator[None]:
    """No test leaves a patched model behind."""
    yield
    if "comfy.model_management" in sys.modules:
        sys.modules["comfy.model_management"].unload_all_models()


@pytest.fixture(scope="session")
def load(pack: ModuleType) -> Callable[[str], tuple[Any, Any]]:
    """(MODEL, CLIP) by name; each model is loaded once."""
    cache: dict[str, tuple[Any, Any]] = {}

    def get(name: str) -> tuple[Any, Any]:
        if name not in cache:
            with torch.inference_mode():
                cache[name] = tiny.load_model(name)
        return cache[name]

    return get


@pytest.fixture
def sd15(load: Callable[[str], tuple[Any, Any]]) -> tuple[Any, Any]:
    """(MODEL, CLIP) of Stable Diffusion 1.5."""
    return load("tiny_sd15")


@pytest.fixture
def sd3(load: Callable[[str], tuple[Any, Any]]) -> Any:
    """MODEL of Stable Diffusion 3, whose q, k and v are one weight."""
    return load("tiny_sd3")[0]


@pytest.fixture
def wan(load: Callable[[str], tuple[Any, Any]]) -> Any:
    """MODEL of Wan 2.1."""
    return load("tiny_wan")[0]


@pytest.fixture
def hyvid(load: Callable[[str], tuple[Any, Any]]) -> Any:
    """MODEL of HunyuanVideo, built like Flux."""
    return load("tiny_hyvid")[0]


@pytest.fixture
def folders(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``loras`` and ``lycoris`` in it, which are all that ComfyUI knows of these kinds."""
    import folder_paths

    for name in ("loras", "lycoris"):
        folder = tmp_path / name
        folder.mkdir()
        _, extensions = folder_paths.folder_names_and_paths[name]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(folder)], extensions))
        folder_paths.filename_list_cache.pop(name, None)
    return tmp_path


@pytest.fixture
def host(pack: ModuleType) -> Callable[[str], ModuleType]:
    """A module of the pack's ``nodes/host``, in the copy that ComfyUI runs."""
    return lambda name: sys.modules[f"{pack.__name__}.nodes.host.{name}"]


@pytest.fixture
def load_node(comfy_nodes: dict[str, Any]) -> Any:
    """Load LyCORIS."""
    return comfy_nodes["LoadLyCORIS"]


class Apply:
    """Files onto a model by the nodes that a user would place."""

    def __init__(self, nodes: dict[str, Any], folders: Path) -> None:
        self._nodes = nodes
        self._folders = folders
        self._count = 0

    def stack(self, layers: dict[str, Any], strength: float = 1.0, strength_clip: float | None = None) -> Any:
        """A file of {layer: {suffix: tensor}} through Load LyCORIS."""
        self._count += 1
        name = f"file_{self._count}.safetensors"
        tiny.save(self._folders / "loras" / name, layers)
        clip = strength if strength_clip is None else strength_clip
        return self._nodes["LoadLyCORIS"].execute(name, strength, clip).args[0]

    def __call__(
        self,
        model: Any,
        *stacks: Any,
        strength: float = 1.0,
        strength_clip: float = 1.0,
        clip: Any = None,
        on_unmatched: str = "error if nothing matches",
        multipliers: str = "",
    ) -> tuple[Any, Any, str]:
        """(MODEL, CLIP, report) of Apply LyCORIS to Model, with the stacks joined by Stack LyCORIS."""
        slots = {f"lycoris_{number}": stack for number, stack in enumerate(stacks, 1)}
        (joined,) = self._nodes["StackLyCORIS"].execute(**slots).args
        apply = self._nodes["ApplyLyCORISToModel"]
        return apply.execute(model, joined, strength, strength_clip, on_unmatched, clip, multipliers).args

    def files(self, model: Any, *files: dict[str, Any], **options: Any) -> tuple[Any, Any, str]:
        """The same with files that are made of {layer: {suffix: tensor}} first."""
        return self(model, *(self.stack(layers) for layers in files), **options)


@pytest.fixture
def apply(comfy_nodes: dict[str, Any], folders: Path) -> Apply:
    """Files onto a model, by our nodes."""
    return Apply(comfy_nodes, folders)


@pytest.fixture
def output(pack: ModuleType, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder, below which the baked files go; also listed as folders of models."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(folders / "output"))
    return folders / "output"


@pytest.fixture
def bases(output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``checkpoints``, ``diffusion_models`` and ``text_encoders``, which are all there is."""
    import folder_paths

    root = output.parent / "models"
    for name in ("checkpoints", "diffusion_models", "text_encoders"):
        own = root / name
        own.mkdir(parents=True)
        made = output / ("clip" if name == "text_encoders" else name)
        _, extensions = folder_paths.folder_names_and_paths[name]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(own), str(made)], extensions))
        folder_paths.filename_list_cache.pop(name, None)
    return root


@pytest.fixture(scope="session")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet of tiny_sd15 as a checkpoint without anything else, so that writing it is quick."""
    models.ensure(["tiny_sd15"])
    tensors = load_file(paths.MODELS / models.FILES["tiny_sd15"][0])
    path = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    save_file(
        {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")},
        path,
        {"modelspec.title": "tiny"},
    )
    return path


@pytest.fixture
def bake(comfy_nodes: dict[str, Any], bases: Path) -> Iterator[Callable[..., tuple[Path, str]]]:
    """(path, report) of MergeLyCORIS; what it wrote is deleted again."""
    made: list[Path] = []

    def run(base: str, stack: Any, **options: Any) -> tuple[Path, str]:
        defaults = {
            "strength_model": 1.0,
            "strength_clip": 1.0,
            "save_dtype": "fp32",
            "filename_prefix": "merged",
            "on_unmatched": "error if nothing matches",
        }
        path, report = comfy_nodes["MergeLyCORIS"].execute(base, stack, **{**defaults, **options}).args
        made.append(Path(path))
        return Path(path), report

    yield run
    for path in made:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


@pytest.fixture
def combine(comfy_nodes: dict[str, Any]) -> Callable[..., tuple[Any, str]]:
    """Combine LyCORIS: (stack, report)."""

    def call(stack: Any, **options: Any) -> tuple[Any, str]:
        return comfy_nodes["CombineLyCORIS"].execute(lycoris=stack, **{**_COMBINE, **options}).args

    return call


@pytest.fixture
def embeddings(pack: ModuleType, tmp_path: Path) -> Path:
    """An embeddings folder of the user's."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    return folder
