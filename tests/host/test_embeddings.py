"""Embeddings of adapter files as words of a prompt: as from the embeddings folder, for one CLIP only."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prompts import PROMPTS, same_tokens, vectors
from safetensors.torch import save_file
from torch import Tensor

UNET, UNET_KEY = "lora_unet_conv_in", "diffusion_model.input_blocks.0.0.weight"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
TEXT_KEY = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
UNKNOWN = "does not exist, ignoring"


@pytest.fixture
def model(sd15: tuple[Any, Any]) -> Any:
    return sd15[0]


@pytest.fixture
def clip(sd15: tuple[Any, Any], embeddings: Path) -> Iterator[Any]:
    """CLIP-L of Stable Diffusion 1.5, which knows the user's folder."""
    tokenizer = sd15[1].tokenizer.clip_l
    before = dict(vars(tokenizer)), dict(vars(sd15[1].tokenizer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "embedding_directory", [str(embeddings)])
        yield sd15[1]
    assert (vars(tokenizer), vars(sd15[1].tokenizer)) == before


class Bundle:
    """Files with embeddings, applied by our nodes."""

    def __init__(self, apply: Any, model: Any) -> None:
        self._apply = apply
        self._model = model
        self._layers = {UNET: tiny.make("lora", tiny.parameter(model, UNET_KEY))}

    def file(self, bundled: dict[str, Tensor], **layers: dict[str, Tensor]) -> dict[str, Any]:
        """{layer: {suffix: tensor}} of a file with embeddings by "name.part"."""
        made = {**self._layers, **layers}
        for key, value in bundled.items():
            name, _, part = key.rpartition(".")
            made.setdefault(f"bundle_emb.{name}", {})[part] = value
        return made

    def __call__(self, clip: Any, *files: dict[str, Tensor], **options: Any) -> tuple[Any, str]:
        """(CLIP, report) of Apply LyCORIS to Model with files of embeddings by "name.part"."""
        made = [self.file(bundled) for bundled in files]
        _, found, report = self._apply.files(self._model, *made, clip=clip, **options)
        return found, report


@pytest.fixture
def bundle(apply: Any, model: Any) -> Bundle:
    return Bundle(apply, model)


def knows(clip: Any, word: str, caplog: pytest.LogCaptureFixture) -> bool:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        clip.tokenize(f"embedding:{word}")
    return UNKNOWN not in caplog.text


def encoded(clip: Any, text: str) -> tuple[Tensor, Tensor]:
    cond, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return cond, pooled


# ---- as from a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["string_to_param.*", "emb_params", "clip_l"])
def test_encodes_what_a_file_of_the_users_folder_would(
    part: str, dtype: torch.dtype, clip: Any, bundle: Bundle, embeddings: Path
) -> None:
    value = vectors().to(dtype)
    found, report = bundle(clip, {f"foo.{part}": value})
    assert "embedding:foo is a word for clip_l (3 vectors)" in report
    of_bundle = [(found.tokenize(text), *encoded(found, text)) for text in PROMPTS[:5]]
    assert list(embeddings.iterdir()) == []

    save_file({"clip_l": value}, embeddings / "foo.safetensors")
    for text, (tokens, cond, pooled) in zip(PROMPTS, of_bundle, strict=False):
        assert same_tokens(tokens, clip.tokenize(text)), text
        of_file = encoded(clip, text)
        assert torch.equal(cond, of_file[0]), text
        assert torch.equal(pooled, of_file[1]), text
    assert not torch.equal(of_bundle[0][1], encoded(clip, "bar")[0])


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("shape", [(1, 768), (768,), (9, 768), (100, 768)])
def test_tokenizes_as_with_a_file(
    shape: tuple[int, ...], text: str, clip: Any, bundle: Bundle, embeddings: Path
) -> None:
    value = torch.randn(shape)
    found, _ = bundle(clip, {"foo.emb_params": value})
    tokens = found.tokenize(text, return_word_ids=True)
    save_file({"emb_params": value}, embeddings / "foo.safetensors")
    assert same_tokens(tokens, clip.tokenize(text, return_word_ids=True))


def test_the_file_comes_before_the_users_folder(clip: Any, bundle: Bundle, embeddings: Path) -> None:
    mine, theirs = vectors(), vectors()
    save_file({"emb_params": theirs}, embeddings / "foo.safetensors")
    save_file({"emb_params": theirs}, embeddings / "bar.safetensors")
    found, _ = bundle(clip, {"foo.emb_params": mine})
    tokens = [token for token, _ in found.tokenize("embedding:foo embedding:bar")["l"][0]]
    assert torch.equal(torch.stack(tokens[1:4]), mine)
    assert torch.equal(torch.stack(tokens[4:7]), theirs)
    before = [token for token, _ in clip.tokenize("embedding:foo")["l"][0]]
    assert torch.equal(torch.stack(before[1:4]), theirs)


@pytest.mark.parametrize("name", ["foo", "Foo", "my.style.v1.5", "日本", "sub/foo", "a-b_c:d", "foo(x)"])
def test_names_as_they_are_given(name: str, clip: Any, bundle: Bundle, caplog: Any) -> None:
    found, report = bundle(clip, {f"{name}.emb_params": vectors()})
    assert f"embedding:{name} is a word" in report
    assert knows(found, name.replace("(", r"\(").replace(")", r"\)"), caplog)
    assert not knows(found, name.swapcase() if name.isascii() else "x", caplog)


@pytest.mark.parametrize(
    ("name", "word"), [("<foo>", "foo"), ("[foo]", "foo"), ("my style", "my_style"), (" foo,", "foo")]
)
def test_names_that_a_prompt_cannot_spell(
    name: str, word: str, clip: Any, bundle: Bundle, caplog: Any
) -> None:
    found, report = bundle(clip, {f"{name}.emb_params": vectors()})
    assert f"embedding:{word} is a word" in report
    assert knows(found, word, caplog)


@pytest.mark.parametrize("name", ["<>", ",", "a<b", "a\0b"])
def test_names_that_no_prompt_could(name: str, clip: Any, bundle: Bundle) -> None:
    found, report = bundle(clip, {f"{name}.emb_params": vectors()})
    assert "cannot spell its name" in report
    assert found is clip


# ---- for one CLIP only ------------------------------------------------------------------------------------


def test_only_the_clip_that_comes_out_knows(clip: Any, bundle: Bundle, caplog: Any) -> None:
    import comfy.sd1_clip

    sibling = clip.clone()
    method, function = comfy.sd1_clip.SDTokenizer._try_get_embedding, comfy.sd1_clip.load_embed
    found, _ = bundle(clip, {"foo.clip_l": vectors()})

    assert knows(found, "foo", caplog)
    assert not knows(clip, "foo", caplog)
    assert not knows(sibling, "foo", caplog)
    assert not knows(clip.clone(), "foo", caplog)
    assert type(found.tokenizer) is type(clip.tokenizer)
    assert type(found.tokenizer.clip_l) is type(clip.tokenizer.clip_l)
    assert comfy.sd1_clip.SDTokenizer._try_get_embedding is method
    assert comfy.sd1_clip.load_embed is function


def test_later_nodes_keep_the_words(
    clip: Any, bundle: Bundle, comfy_nodes: Any, model: Any, folders: Path, caplog: Any
) -> None:
    import nodes

    found, _ = bundle(clip, {"foo.clip_l": vectors()})
    weight = tiny.parameter(clip.patcher, TEXT_KEY)
    tiny.save(folders / "loras" / "core.safetensors", {TEXT: tiny.make("lora", weight)})
    assert knows(found.clone().clone(), "foo", caplog)
    (skipped,) = nodes.CLIPSetLastLayer().set_last_layer(found, -2)
    assert knows(skipped, "foo", caplog)
    _, changed = nodes.LoraLoader().load_lora(model, skipped, "core.safetensors", 1.0, 1.0)
    assert knows(changed, "foo", caplog)
    assert knows(copy.copy(changed), "foo", caplog)
    ((cond, _),) = nodes.CLIPTextEncode().encode(changed, "embedding:foo bar")[0]
    ((plain, _),) = nodes.CLIPTextEncode().encode(changed, "bar")[0]
    assert not torch.equal(cond, plain)


def test_nodes_one_after_the_other(clip: Any, bundle: Bundle, embeddings: Path, caplog: Any) -> None:
    first, second = vectors(), vectors()
    save_file({"emb_params": vectors()}, embeddings / "own.safetensors")
    one, _ = bundle(clip, {"foo.clip_l": first, "old.clip_l": first})
    two, report = bundle(one, {"foo.clip_l": second, "new.clip_l": second})
    three, _ = bundle(two, {"last.clip_l": second})

    assert "embedding:foo is a word for clip_l (3 vectors), instead of that of an earlier node" in report
    assert "embedding:new is a word for clip_l (3 vectors)\n" in report + "\n"
    assert all(knows(three, word, caplog) for word in ("foo", "old", "new", "last", "own"))
    assert [knows(one, word, caplog) for word in ("foo", "old", "new", "own")] == [True, True, False, True]
    for found, value in ((one, first), (two, second), (three, second)):
        tokens = [token for token, _ in found.tokenize("embedding:foo")["l"][0]]
        assert torch.equal(torch.stack(tokens[1:4]), value)


def test_strengths_do_not_matter(clip: Any, bundle: Bundle, caplog: Any) -> None:
    """They are words, not weights."""
    found, _ = bundle(clip, {"foo.clip_l": vectors()}, strength=0.0, strength_clip=0.0)
    assert knows(found, "foo", caplog)
    assert found.patcher.patches == {}


def test_text_encoder_layers_beside_them(
    clip: Any, apply: Any, bundle: Bundle, model: Any, caplog: Any
) -> None:
    weight = tiny.parameter(clip.patcher, TEXT_KEY)
    layers = bundle.file({"foo.clip_l": vectors()}, **{TEXT: tiny.make("lora", weight)})
    _, found, report = apply.files(model, layers, clip=clip)
    assert "2 of 2 layers applied" in report
    assert len(found.patcher.patches) == 1
    assert knows(found, "foo", caplog)
    assert not knows(clip, "foo", caplog)


def test_without_a_clip(bundle: Bundle) -> None:
    found, report = bundle(None, {"foo.clip_l": vectors(), "bar.t5": vectors()})
    assert found is None
    assert "embeddings are left out (bar, foo): no CLIP is connected" in report


def test_a_file_without_embeddings_leaves_the_tokenizer_alone(
    clip: Any, apply: Any, bundle: Bundle, model: Any
) -> None:
    _, found, _ = apply.files(model, bundle.file({}), clip=clip)
    assert found is clip


def test_nothing_is_written(
    clip: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins
    import os

    layers = bundle.file({"foo.clip_l": vectors()})
    stack = bundle._apply.stack(layers)
    opened = []
    real = builtins.open

    def spy(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if set(mode) & set("wax+"):
            opened.append(file)
        return real(file, mode, *args, **more)

    monkeypatch.setattr(builtins, "open", spy)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    _, found, _ = bundle._apply(bundle._model, stack, clip=clip)
    encoded(found, "embedding:foo bar")
    assert opened == []
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert found.tokenizer.clip_l.embedding_directory == clip.tokenizer.clip_l.embedding_directory
    assert os.listdir(clip.tokenizer.clip_l.embedding_directory[0]) == []  # noqa: PTH208


# ---- what does not fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bundled", "key", "reason"),
    [
        ({"foo.clip_l": vectors(1, 1280)}, "foo.clip_l", "1280 numbers, but clip_l takes 768"),
        ({"foo.emb_params": vectors(1, 1024)}, "foo.emb_params", "1024 numbers, but clip_l takes 768"),
        ({"foo.t5": vectors(1, 768)}, "foo.t5", "for the text encoder t5, and this CLIP has clip_l"),
        ({"foo.clip_g": vectors(1, 1280)}, "foo.clip_g", "for the text encoder clip_g"),
        ({"foo.clip_l_out": vectors(1, 768)}, "foo.clip_l_out", "replaces what a text encoder puts out"),
    ],
)
def test_what_fits_no_encoder_is_listed(
    bundled: dict[str, Tensor], key: str, reason: str, clip: Any, bundle: Bundle
) -> None:
    found, report = bundle(clip, bundled)
    line = next(line for line in report.splitlines() if f"bundle_emb.{key}" in line)
    assert reason in line
    assert found is clip
    with pytest.raises(Exception, match="bundle_emb"):
        bundle(clip, bundled, on_unmatched="error if anything is unmatched")


def test_what_fits_is_used_beside_what_does_not(clip: Any, bundle: Bundle, caplog: Any) -> None:
    found, report = bundle(
        clip,
        {
            "foo.clip_l": vectors(),
            "foo.clip_g": vectors(3, 1280),
            "foo.clip_l_out": vectors(),
            "bar.t5": vectors(),
        },
    )
    assert knows(found, "foo", caplog)
    assert not knows(found, "bar", caplog)
    assert report.count("bundle_emb.") == 3


def test_the_user_keeps_a_word_that_the_file_has_for_another_model(
    clip: Any, bundle: Bundle, embeddings: Path, caplog: Any
) -> None:
    save_file({"emb_params": vectors()}, embeddings / "foo.safetensors")
    found, _ = bundle(clip, {"foo.clip_l": vectors(1, 1280), "bar.clip_l": vectors()})
    assert len([t for t, _ in found.tokenize("embedding:foo")["l"][0] if isinstance(t, Tensor)]) == 3


def test_the_same_vectors_twice(clip: Any, bundle: Bundle) -> None:
    """A part that names its encoder comes before one that does not."""
    named = vectors()
    found, report = bundle(clip, {"foo.emb_params": vectors(), "foo.clip_l": named})
    assert "bundle_emb.foo.emb_params: this embedding has other vectors for clip_l" in report
    tokens = [token for token, _ in found.tokenize("embedding:foo")["l"][0]]
    assert torch.equal(torch.stack(tokens[1:4]), named)


def test_two_names_of_a_file_that_are_one_word(clip: Any, bundle: Bundle) -> None:
    plain = vectors()
    found, report = bundle(clip, {"<foo>.clip_l": vectors(), "foo.clip_l": plain})
    assert "embedding '‹foo›' is not used: another one of this file is embedding:foo" in report
    tokens = [token for token, _ in found.tokenize("embedding:foo")["l"][0]]
    assert torch.equal(torch.stack(tokens[1:4]), plain)


def test_two_files_with_one_name(clip: Any, bundle: Bundle, caplog: Any) -> None:
    first, second = vectors(), vectors()
    found, report = bundle(
        clip,
        {"foo.clip_l": first, "one.clip_l": first},
        {"foo.emb_params": second, "two.clip_l": second},
        on_unmatched="error if anything is unmatched",
    )
    tokens = [token for token, _ in found.tokenize("embedding:foo")["l"][0]]
    assert torch.equal(torch.stack(tokens[1:4]), second)
    assert knows(found, "one", caplog)
    assert knows(found, "two", caplog)
    assert report.count("embedding:foo is a word") == 1
    assert "embedding:foo is not used: 'file_2.safetensors', which comes later, has it too" in report


def test_one_file_twice_in_a_stack(clip: Any, apply: Any, bundle: Bundle, model: Any, caplog: Any) -> None:
    stack = apply.stack(bundle.file({"foo.clip_l": vectors()}))
    _, found, report = apply(model, stack, stack, clip=clip)
    assert knows(found, "foo", caplog)
    assert "not used" not in report
