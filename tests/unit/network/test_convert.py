"""Every algorithm × dtype × dialect: what is written has the same deltas, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from combining import one_per_algorithm
from oracles import to_numpy
from samples import Case
from torch import Tensor

import lycoris_algos
from lycoris_algos import AdapterSet, BadValueError, NoSpellingError, convert
from lycoris_algos.network import Part, to_tensors

PATHS = {
    "kohya": "lora_unet_down_blocks_0_attentions_0_to_q",
    "comfy": "diffusion_model.input_blocks.1.1.to_q",
    "diffusers": "unet.down_blocks.0.attentions.0.to_q",
    "peft": "base_model.model.down_blocks.0.attentions.0.to_q",
}
SAMPLES = one_per_algorithm()
every_sample = pytest.mark.parametrize("case", SAMPLES, ids=lambda case: case.name)


def adapters(tensors: dict[str, Tensor], dialect: str = "kohya", **metadata: str) -> AdapterSet:
    stored = {f"{PATHS[dialect]}.{suffix}": value for suffix, value in tensors.items()}
    return lycoris_algos.from_tensors(stored, metadata, name="sample")


class OneLayer:
    """A model with one layer."""

    def is_text(self, layer: str) -> bool:
        return False

    def role(self, layer: str) -> None:
        return None

    def spelled(self, layer: str, dialect: str) -> tuple[Part, ...]:
        return (Part(PATHS[dialect]),)


def deltas(own: AdapterSet, case: Case) -> list[np.ndarray]:
    (layer,) = own.values()
    found = []
    for target in case.targets():
        part = layer if target.what == "weight" else layer.bias
        assert part is not None
        found.append(to_numpy(part.delta(target.weight(torch.float64))))
    return found


@every_sample
@pytest.mark.parametrize("dialect", PATHS)
def test_a_dialect_keeps_the_deltas_or_has_no_word(case: Case, dialect: str, tmp_path: Path) -> None:
    own = adapters(case.tensors)
    try:
        converted = convert(own, dialect=dialect, known=OneLayer())
    except NoSpellingError as refused:
        assert dialect in ("diffusers", "peft")
        message = str(refused)
        assert PATHS["kohya"] in message
        return
    assert converted.dialect == dialect
    back = lycoris_algos.load(lycoris_algos.save(converted, tmp_path / "x.safetensors"))
    assert list(back) == [PATHS[dialect]]
    assert back.dialect == dialect
    assert back.unmatched == ()
    for got, wanted in zip(deltas(back, case), deltas(own, case), strict=True):
        assert np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_peft_has_its_own_names_and_no_alpha(dialect: str) -> None:
    tensors = {
        "lora_up.weight": torch.randn(8, 2),
        "lora_down.weight": torch.randn(2, 6),
        "alpha": torch.ones(()),
    }
    magnitude = {"dora_scale": torch.rand(8, 1)}
    config = {"lora_adapter_metadata": json.dumps({"lora_alpha": 7, "r": 2})}
    keys = set(
        to_tensors(convert(adapters({**tensors, **magnitude}, **config), dialect=dialect, known=OneLayer()))
    )
    names = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    assert keys == {f"{PATHS[dialect]}.{name}" for name in names}
    assert (
        "lora_adapter_metadata"
        not in convert(adapters(tensors, **config), dialect=dialect, known=OneLayer()).metadata
    )


@every_sample
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_dtype_is_one_rounding_of_every_tensor(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    own = adapters(case.tensors)
    path = lycoris_algos.save(own, tmp_path / "x.safetensors", dtype=dtype)
    # For fp8 the factors are first brought into its range; the change stays as it is.
    ready = replace(own, layers={name: layer.filling(dtype) for name, layer in own.items()})
    for got, unchanged in zip(deltas(ready, case), deltas(own, case), strict=True):
        assert np.abs(got - unchanged).max() <= 1e-6 * np.abs(unchanged).max()
    before, after = to_tensors(ready), to_tensors(lycoris_algos.load(path))
    assert before.keys() == after.keys()
    for key, value in before.items():
        kept = value.dim() == 0 or not value.is_floating_point()
        wanted = value if kept else value.to(dtype)
        assert torch.equal(after[key].float(), wanted.float()), key


@every_sample
def test_a_multiplier_is_in_the_file_or_refused(case: Case, tmp_path: Path) -> None:
    own = adapters(case.tensors)
    (layer,) = own.values()
    if not layer.linear:
        with pytest.raises(BadValueError, match="CombineLyCORIS"):
            convert(own, strength_model=0.5)
        return
    path = lycoris_algos.save(convert(own, strength_model=-0.7), tmp_path / "x.safetensors")
    back = lycoris_algos.load(path)
    for got, wanted in zip(deltas(back, case), deltas(own, case), strict=True):
        assert np.abs(got + 0.7 * wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_text_encoders_have_their_own_multiplier() -> None:
    tensors = {"lora_up.weight": torch.randn(8, 2), "lora_down.weight": torch.randn(2, 6)}
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    stored = {f"{name}.{suffix}": v for name in (PATHS["kohya"], text) for suffix, v in tensors.items()}
    own = lycoris_algos.from_tensors(stored)
    converted = convert(own, strength_model=0.5, strength_clip=2.0)
    for name, factor in ((PATHS["kohya"], 0.5), (text, 2.0)):
        assert torch.allclose(converted[name].delta((8, 6)), factor * own[name].delta((8, 6)))
    assert list(convert(own, strength_clip=0.0)) == [PATHS["kohya"]]
    with pytest.raises(BadValueError, match="nothing would be stored"):
        convert(own, strength_model=0.0, strength_clip=0.0)


def test_what_names_alone_tell() -> None:
    tensors = {"lora_up.weight": torch.randn(8, 2), "lora_down.weight": torch.randn(2, 6)}
    assert list(convert(adapters(tensors, "comfy"), dialect="kohya")) == ["lora_unet_input_blocks_1_1_to_q"]
    assert list(convert(adapters(tensors, "diffusers"), dialect="kohya")) == [PATHS["kohya"]]
    assert list(convert(adapters(tensors, "peft"), dialect="diffusers")) == [PATHS["diffusers"]]
    assert list(convert(adapters(tensors, "diffusers"), dialect="peft")) == [PATHS["peft"]]
    text = "text_model.encoder.layers.0.mlp.fc1"
    for name in (f"lycoris_{text.replace('.', '_')}", f"base_model.model.{text}", f"text_encoder.{text}"):
        stored = {f"{name}.{suffix}": value for suffix, value in tensors.items()}
        converted = convert(lycoris_algos.from_tensors(stored), dialect="kohya")
        assert list(converted) == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]
    for own, dialect in (("kohya", "comfy"), ("kohya", "diffusers"), ("comfy", "diffusers")):
        with pytest.raises(NoSpellingError, match="Give the model"):
            convert(adapters(tensors, own), dialect=dialect)
    with pytest.raises(NoSpellingError, match="not as 'nonsense'"):
        convert(adapters(tensors), dialect="nonsense")


def test_numbers_too_large_for_a_dtype_are_refused() -> None:
    tensors = {"lora_up.weight": torch.full((8, 2), 1e5), "lora_down.weight": torch.randn(2, 6)}
    with pytest.raises(BadValueError, match="too large for float16"):
        convert(adapters(tensors), dtype=torch.float16)
    convert(adapters(tensors), dtype=torch.bfloat16)


def test_the_metadata_is_kept_and_says_how_it_was_made() -> None:
    tensors = {"lora_up.weight": torch.randn(8, 2), "lora_down.weight": torch.randn(2, 6)}
    own = adapters(tensors, ss_base_model_version="sd_v1", ss_tag_frequency="{}")
    once = convert(own, strength_model=0.5, title="mine")
    assert once.metadata["ss_base_model_version"] == "sd_v1"
    assert once.metadata["modelspec.title"] == "mine"
    twice = json.loads(convert(once, dtype=torch.float16).metadata["lycoris_algos.recipe"])
    assert twice["source"]["recipe"]["strength_model"] == 0.5


def test_embeddings_come_along_or_not() -> None:
    stored = {
        f"{PATHS['kohya']}.lora_up.weight": torch.randn(8, 2),
        f"{PATHS['kohya']}.lora_down.weight": torch.randn(2, 6),
        "bundle_emb.word.clip_l": torch.randn(2, 768),
    }
    own = lycoris_algos.from_tensors(stored)
    assert list(convert(own).embeddings) == ["word"]
    assert not convert(own, embeddings=False).embeddings
