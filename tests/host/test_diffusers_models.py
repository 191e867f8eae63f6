"""Models in diffusers' names: every layer that ComfyUI's model has is found in them, whole or in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import families
import pytest
from families import SUBJECTS, Layer, Subject

from lycoris_algos.model_files import Spot, index_checkpoint

# UNets are in tests/unit/model_files/test_diffusers_names.py.
TRANSFORMERS = [
    subject for subject in SUBJECTS if not subject.text and subject.title[:5] not in ("SD 1.", "SDXL")
]


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    families.forget()


@pytest.mark.parametrize("subject", TRANSFORMERS, ids=[subject.title for subject in TRANSFORMERS])
def test_every_layer_of_comfyui_is_found_where_diffusers_has_it(subject: Subject, pack: object) -> None:
    if not subject.has():
        pytest.skip("this ComfyUI does not have it")
    shapes = families.shapes_of(subject)
    files = {file.trainer: file for file in subject.files(shapes)}
    layers = next((own for name, own in files.items() if name.startswith("diffusers, ")), None)
    if layers is None:
        pytest.skip("diffusers calls its layers as ComfyUI does, or is not known to")
    component = next(iter(layers.layers)).partition(".")[0]
    pieces: dict[str, list[Layer]] = {}
    stored = {}
    for layer in layers.layers.values():
        whole = shapes[f"{layer.native}.weight"]
        stored[f"{component}/{layer.path}.weight"] = (
            whole if layer.rows is None else (layer.rows[1], *whole[1:])
        )
        pieces.setdefault(layer.native, []).append(layer)

    model = index_checkpoint(stored).model

    assert model is not None
    assert len(pieces) > 10
    for native, own in pieces.items():
        whole = shapes[f"{native}.weight"]
        if sum(whole[0] if layer.rows is None else layer.rows[1] for layer in own) != whole[0]:
            continue  # a piece that diffusers does not have, such as an unused one
        own.sort(key=lambda layer: layer.rows or (0, 0))
        wanted = tuple(Spot(f"{component}/{layer.path}.weight", swapped=layer.swapped) for layer in own)
        meanings = list(model.meanings(f"diffusion_model.{native}"))
        assert wanted in meanings, native
        assert model.shape(wanted) == whole
