"""The real ComfyUI in this process: its tiny models, our nodes, and folders for adapter files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch


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
    ) -> tuple[Any, Any, str]:
        """(MODEL, CLIP, report) of Apply LyCORIS to Model, with the stacks joined by Stack LyCORIS."""
        slots = {f"lycoris_{number}": stack for number, stack in enumerate(stacks, 1)}
        (joined,) = self._nodes["StackLyCORIS"].execute(**slots).args
        apply = self._nodes["ApplyLyCORISToModel"]
        return apply.execute(model, joined, strength, strength_clip, on_unmatched, clip).args

    def files(self, model: Any, *files: dict[str, Any], **options: Any) -> tuple[Any, Any, str]:
        """The same with files that are made of {layer: {suffix: tensor}} first."""
        return self(model, *(self.stack(layers) for layers in files), **options)


@pytest.fixture
def apply(comfy_nodes: dict[str, Any], folders: Path) -> Apply:
    """Files onto a model, by our nodes."""
    return Apply(comfy_nodes, folders)


@pytest.fixture
def embeddings(pack: ModuleType, tmp_path: Path) -> Path:
    """An embeddings folder of the user's."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    return folder
