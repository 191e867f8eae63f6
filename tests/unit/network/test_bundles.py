"""Embeddings inside an adapter file: every program's form, there and back, and what is no embedding."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import same_bits
from safetensors.torch import load_file, save_file
from torch import Tensor

from lycoris_algos import BadValueError, NotAnAdapterError, describe, from_tensors, load, save
from lycoris_algos.network import to_tensors
from lycoris_algos.network.bundles import encoder_of, is_output, take_embeddings

LORA = {"lora_unet_a.lora_up.weight": torch.ones(4, 2), "lora_unet_a.lora_down.weight": torch.ones(2, 4)}


def vectors(*shape: int) -> Tensor:
    return torch.randn(shape)


FORMS: dict[str, tuple[dict[str, Tensor], dict[str, set[str]]]] = {
    "A1111": ({"foo.string_to_param.*": vectors(4, 768)}, {"foo": {"string_to_param.*"}}),
    "A1111, another token": (
        {"foo.string_to_param.<x>": vectors(4, 768)},
        {"foo": {"string_to_param.<x>"}},
    ),
    "kohya": ({"foo.emb_params": vectors(4, 768)}, {"foo": {"emb_params"}}),
    "SDXL": (
        {"foo.clip_l": vectors(4, 768), "foo.clip_g": vectors(4, 1280)},
        {"foo": {"clip_l", "clip_g"}},
    ),
    "OneTrainer, Flux": (
        {
            "<foo>.clip_l": vectors(768),
            "<foo>.t5": vectors(2, 4096),
            "<foo>.clip_l_out": vectors(1, 768),
            "<foo>.t5_out": vectors(2, 4096),
        },
        {"<foo>": {"clip_l", "t5", "clip_l_out", "t5_out"}},
    ),
    "OneTrainer, others": (
        {"a.llama": vectors(2, 4096), "a.gemma": vectors(2, 2304), "a.qwen": vectors(2, 3584)},
        {"a": {"llama", "gemma", "qwen"}},
    ),
    "no part": ({"foo": vectors(4, 768)}, {"foo": {""}}),
    "several": (
        {"foo.emb_params": vectors(4, 768), "bar.clip_l": vectors(1, 768)},
        {"foo": {"emb_params"}, "bar": {"clip_l"}},
    ),
    "dots in the name": (
        {
            "my.style.v1.5.string_to_param.*": vectors(4, 768),
            "clip_l.t5.clip_g": vectors(1, 1280),
            "a.b.emb_params": vectors(1, 768),
        },
        {"my.style.v1.5": {"string_to_param.*"}, "clip_l.t5": {"clip_g"}, "a.b": {"emb_params"}},
    ),
    "other scripts": ({"日本 語\n.clip_l": vectors(4, 768)}, {"日本 語\n": {"clip_l"}}),
}


def bundled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"bundle_emb.{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(("stored", "names"), FORMS.values(), ids=FORMS)
def test_every_form_there_and_back(
    stored: dict[str, Tensor], names: dict[str, set[str]], dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = {**LORA, **{key: value.to(dtype) for key, value in bundled(stored).items()}}
    save_file(tensors, tmp_path / "file.safetensors")

    adapters = load(tmp_path / "file.safetensors")

    assert list(adapters) == ["lora_unet_a"]
    assert adapters.unmatched == ()
    assert {name: set(parts) for name, parts in adapters.embeddings.items()} == names
    again = load_file(save(adapters, tmp_path / "again.safetensors"))
    assert again.keys() == tensors.keys()
    assert all(same_bits(again[key], value) for key, value in tensors.items())


def test_a_bundle_of_pytorch(tmp_path: Path) -> None:
    """As LyCORIS' own tool writes it when it is given .pt files: with what is not tensors as well."""
    embedding = vectors(4, 768)
    torch.save(
        {
            **LORA,
            "bundle_emb.foo.string_to_param.*": embedding,
            "bundle_emb.foo.string_to_token.*": 265,
            "bundle_emb.bar": {"emb_params": embedding[:1]},
        },
        tmp_path / "file.pt",
    )
    adapters = load(tmp_path / "file.pt")
    assert same_bits(adapters.embeddings["foo"]["string_to_param.*"], embedding)
    assert same_bits(adapters.embeddings["bar"]["emb_params"], embedding[:1])


@given(st.text(min_size=1), st.sampled_from(["emb_params", "clip_l", "t5_out", "string_to_param.*"]))
def test_any_name(name: str, part: str) -> None:
    key = f"bundle_emb.{name}.{part}"
    embeddings, rest, strangers = take_embeddings({key: torch.ones(1, 8)})
    assert ({n: list(parts) for n, parts in embeddings.items()}, rest, strangers) == ({name: [part]}, {}, [])


def test_a_file_without_embeddings_has_none() -> None:
    adapters = from_tensors(LORA)
    assert adapters.embeddings == {}
    assert to_tensors(adapters).keys() == LORA.keys()


def test_embeddings_count_as_memory() -> None:
    adapters = from_tensors(LORA)
    more = from_tensors({**LORA, "bundle_emb.foo.clip_l": torch.ones(3, 768, dtype=torch.float16)})
    assert more.size_bytes - adapters.size_bytes == 3 * 768 * 2


@pytest.mark.parametrize(
    ("part", "encoder", "output"),
    [
        ("string_to_param.*", None, False),
        ("emb_params", None, False),
        ("", None, False),
        ("clip_g", "clip_g", False),
        ("t5", "t5", False),
        ("llama_out", "llama", True),
    ],
)
def test_what_a_part_is_for(part: str, encoder: str | None, output: bool) -> None:
    assert encoder_of(part) == encoder
    assert is_output(part) == output


# ---- what cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("bundle_emb.foo.string_to_token.*", torch.ones(1, 768), "form"),
        ("bundle_emb.foo.step", torch.ones(1), "form"),
        ("bundle_emb.foo.clip_l.weight", torch.ones(1, 768), "form"),
        ("bundle_emb.", torch.ones(1, 768), "form"),
        ("bundle_emb..clip_l", torch.ones(1, 768), "form"),
        ("bundle_emb.foo.clip_l", torch.ones(1, 4, 768), r"\(1, 4, 768\)"),
        ("bundle_emb.foo.clip_l", torch.tensor(1.0), "shape"),
        ("bundle_emb.foo.clip_l", torch.ones(0, 768), r"\(0, 768\)"),
        ("bundle_emb.foo.clip_l", torch.ones(4, 0), "shape"),
        ("bundle_emb.foo.clip_l", torch.ones(4, 768, dtype=torch.int64), "int64"),
        ("bundle_emb.foo.clip_l", torch.ones(4, 768, dtype=torch.bool), "bool"),
        ("bundle_emb.foo.clip_l", torch.ones(4, 768, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_is_no_embedding_is_listed_with_the_reason(key: str, value: Tensor, word: str) -> None:
    adapters = from_tensors({**LORA, key: value, "bundle_emb.good.clip_l": torch.ones(1, 768)})
    assert list(adapters) == ["lora_unet_a"]
    assert list(adapters.embeddings) == ["good"]
    ((found, reason),) = ((item.key, item.reason) for item in adapters.unmatched)
    assert found == key
    assert re.search(word, reason)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_numbers_that_are_none(value: float, dtype: torch.dtype) -> None:
    broken = torch.ones(2, 768, dtype=dtype)
    broken[1, 5] = value
    with pytest.raises(BadValueError, match=r"'x\.safetensors'.*'bundle_emb\.foo\.clip_l'.* 1 of 1536"):
        from_tensors({**LORA, "bundle_emb.foo.clip_l": broken}, name="x.safetensors")


def test_a_file_of_nothing_but_embeddings_is_no_adapter(tmp_path: Path) -> None:
    save_file(bundled({"foo.clip_l": vectors(1, 768)}), tmp_path / "x.safetensors")
    with pytest.raises(NotAnAdapterError, match=r"an embedding.*embeddings folder"):
        load(tmp_path / "x.safetensors")


def test_names_that_only_begin_alike_are_layers() -> None:
    layer = {key.replace("lora_unet_a", "bundle_embroidery"): value for key, value in LORA.items()}
    assert list(from_tensors(layer)) == ["bundle_embroidery"]


# ---- what is said -----------------------------------------------------------------------------------------


def test_a_report_lists_names_vectors_and_encoders() -> None:
    tensors = {
        "foo.clip_l": vectors(4, 768),
        "foo.clip_g": vectors(1280),
        "bar.string_to_param.*": vectors(1, 768),
        "baz.t5_out": vectors(2, 4096),
        "two\nlines.clip_l": vectors(1, 768),
    }
    report = describe(from_tensors({**LORA, **bundled(tensors)}))
    assert "embedding 'foo': 4 vectors of 768 for clip_l, 1 vector of 1280 for clip_g" in report
    assert "embedding 'bar': 1 vector of 768\n" in report
    assert "embedding 'baz': 2 vectors of 4096 for the output of t5" in report
    assert "embedding 'two lines': 1 vector of 768 for clip_l" in report
