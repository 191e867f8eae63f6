"""What is written changes what was read: every model family, out of two dialects and into all."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import families
import pytest
import torch
from families import SUBJECTS, File, Layer, Subject, key_of
from torch import Tensor

PREFIXES = {
    "kohya": ("lora_unet_",),
    "comfy": ("diffusion_model.",),
    "diffusers": ("transformer.", "unet."),
    "peft": ("base_model.model.",),
}
#: Files of a family in the model's own names, and in diffusers'.
SOURCES = ("ai-toolkit", "ComfyUI", "diffusers, SimpleTuner", "diffusers")
MODELS = [subject for subject in SUBJECTS if not subject.text]
#: By parameter, times a vector.
Changes = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    families.forget()


@pytest.fixture
def own(pack: ModuleType, host: Callable[[str], ModuleType]) -> SimpleNamespace:
    """The modules of the pack in the copy that ComfyUI runs."""
    library = sys.modules[f"{pack.__name__}.lycoris_algos"]
    network = sys.modules[f"{pack.__name__}.lycoris_algos.network"]
    return SimpleNamespace(
        library=library,
        to_tensors=network.to_tensors,
        keymap=host("keymap"),
        matching=host("matching"),
        combining=host("combining"),
    )


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def probed(up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
    """ΔW·x for an x that is the same for every weight of this width."""
    x = draw("probe", down.flatten(1).shape[1])
    return scale * (up.flatten(1) @ (down.flatten(1) @ x))


def source_of(file: File, shapes: Any) -> tuple[dict[str, Tensor], Changes]:
    """(a LoRA of rank 1 or 2 on each layer of the first block of each kind; what it does, by parameter)."""
    tensors: dict[str, Tensor] = {}
    changes: Changes = {}
    kinds: dict[str, str] = {}
    places = set()
    for name, layer in file.layers.items():
        place = (layer.native, layer.rows)
        if place in places:
            continue  # ComfyUI has two names in diffusers for it
        places.add(place)
        if kinds.setdefault(re.sub(r"\d+", "*", name, count=1), name) != name:
            continue
        key = key_of(layer, shapes)
        outputs, *inputs = shapes[key]
        count = outputs if layer.rows is None else layer.rows[1]
        rank = 1 + len(name) % 2
        up = draw(f"{name} up", count, rank, *(1 for _ in inputs[1:]))
        down = draw(f"{name} down", rank, *inputs)
        tensors[file.spell(name, "up")], tensors[file.spell(name, "down")] = up, down
        add(changes, key, outputs, probed(up, down), layer)
    return tensors, changes


def add(changes: Changes, key: str, outputs: int, change: Tensor, layer: Layer) -> None:
    if layer.swapped:
        change = torch.cat(change.chunk(2)[::-1])
    start = 0 if layer.rows is None else layer.rows[0]
    changes.setdefault(key, torch.zeros(outputs))[start : start + change.numel()] += change


def core_changes(tensors: dict[str, Tensor], model: Any, shapes: Any) -> Changes:
    """What ComfyUI's own loader takes of a file."""
    import comfy.lora
    import comfy.utils

    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    changes: Changes = {}
    for target, adapter in comfy.lora.load_lora(tensors, keys).items():
        key, part, *function = (target, None) if isinstance(target, str) else target
        up, down, alpha, *_ = adapter.weights
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        inside = key.removeprefix("diffusion_model.")
        swapped = bool(function) and function[0] is comfy.utils.swap_scale_shift
        layer = Layer("", inside, None if part is None else part[1:], swapped)
        add(changes, inside, shapes[inside][0], probed(up.float(), down.float(), scale), layer)
    return changes


def pack_changes(adapters: Any, model: Any, own: SimpleNamespace, shapes: Any) -> Changes:
    """What this pack takes of a file."""
    import comfy.utils

    found = own.matching.match(adapters, own.keymap.known_layers(model, None))
    assert found.unmatched == ()
    changes: Changes = {}
    for name, place in found.placed.items():
        lora = adapters[name].algorithm
        scale = 1.0 if lora.alpha is None else lora.alpha / lora.rank
        (item,) = place.made
        target = item.weight
        key, part, *function = (target, None) if isinstance(target, str) else target
        inside = key.removeprefix("diffusion_model.")
        swapped = bool(function) and function[0] is comfy.utils.swap_scale_shift
        layer = Layer("", inside, None if part is None else part[1:], swapped)
        add(changes, inside, shapes[inside][0], probed(lora.up.float(), lora.down.float(), scale), layer)
    return changes


def assert_same(got: Changes, wanted: Changes) -> None:
    assert got.keys() == wanted.keys()
    for key, change in wanted.items():
        assert (got[key] - change).norm() <= 1e-4 * change.norm(), key


@pytest.mark.parametrize("dialect", PREFIXES)
@pytest.mark.parametrize("subject", MODELS, ids=[subject.title for subject in MODELS])
def test_what_is_written_changes_the_same(subject: Subject, dialect: str, own: SimpleNamespace) -> None:
    if not subject.has():
        pytest.skip("this ComfyUI does not have it")
    model, shapes = families.load(subject), families.shapes_of(subject)
    for file in subject.files(shapes):
        if file.trainer not in SOURCES:
            continue
        tensors, wanted = source_of(file, shapes)
        adapters = own.library.from_tensors(tensors, name=file.trainer)
        known = own.combining.HostModel(model, None, [adapters])
        others = [layer for layer in adapters if not layer.startswith(PREFIXES[dialect])]
        if not all(known.spelled(layer, dialect) for layer in others):
            with pytest.raises(own.library.NoSpellingError):
                own.library.convert(adapters, dialect=dialect, known=known)
            assert dialect in ("diffusers", "peft")
            continue
        converted = own.library.convert(adapters, dialect=dialect, known=known)
        assert all(name.startswith(PREFIXES[dialect]) for name in converted)
        written = own.to_tensors(converted)
        back = own.library.from_tensors(written, converted.metadata, name="written")
        assert_same(pack_changes(back, model, own, shapes), wanted)
        if dialect in ("kohya", "comfy"):
            assert_same(core_changes(written, model, shapes), wanted)
