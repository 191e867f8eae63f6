"""Embeddings of adapter files for other text encoders, whose tokenizers need no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from prompts import PROMPTS, same_tokens, vectors
from safetensors.torch import save_file
from torch import Tensor


class Bare:
    """A CLIP of nothing but its tokenizer, which is all that words have to do with."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def clone(self) -> Bare:
        return Bare(self.tokenizer)

    def tokenize(self, text: str) -> Any:
        return self.tokenizer.tokenize_with_weights(text)


class Teach:
    """Embeddings by "name.part" to a bare CLIP, through the pack's own functions."""

    def __init__(self, module: ModuleType, pack: ModuleType) -> None:
        import sys

        self._module = module
        self._library = sys.modules[f"{pack.__name__}.lycoris_algos"]

    def __call__(self, clip: Bare, bundled: dict[str, Tensor]) -> tuple[Bare, str]:
        layer = {"x.lora_up.weight": torch.ones(2, 1), "x.lora_down.weight": torch.ones(1, 2)}
        tensors = {f"bundle_emb.{key}": value for key, value in bundled.items()}
        words = self._module.fit_words([self._library.from_tensors({**layer, **tensors})], clip)
        (file,) = words.files
        lines = [*file.lines, *(f"{item.key}: {item.reason}" for item in file.unmatched)]
        return self._module.with_words(clip, clip, words), "\n".join(lines)


@pytest.fixture
def teach(pack: ModuleType, host: Callable[[str], ModuleType]) -> Teach:
    return Teach(host("embeddings"), pack)


def tokens_of(tokens: list[list[tuple[Any, float]]]) -> Tensor:
    found = [token for batch in tokens for token, _ in batch if isinstance(token, Tensor)]
    return torch.stack(found) if found else torch.zeros(0)


@pytest.fixture
def sdxl(pack: ModuleType, embeddings: Path) -> Bare:
    import comfy.sdxl_clip

    return Bare(comfy.sdxl_clip.SDXLTokenizer(embedding_directory=[str(embeddings)]))


def test_sdxl_has_vectors_for_both_encoders(sdxl: Bare, teach: Teach, embeddings: Path) -> None:
    small, large = vectors(2, 768), vectors(3, 1280)
    found, report = teach(sdxl, {"foo.clip_g": large, "foo.clip_l": small})
    tokens = found.tokenize("a embedding:foo b")
    assert torch.equal(tokens_of(tokens["l"]), small)
    assert torch.equal(tokens_of(tokens["g"]), large)
    assert "clip_l (2 vectors)" in report
    assert "clip_g (3 vectors)" in report
    assert tokens_of(sdxl.tokenize("embedding:foo")["l"]).numel() == 0

    save_file({"clip_l": small, "clip_g": large}, embeddings / "foo.safetensors")
    for text in PROMPTS:
        assert same_tokens(found.tokenize(text), sdxl.tokenize(text)), text


@pytest.mark.parametrize(("width", "has", "lacks"), [(768, "l", "g"), (1280, "g", "l")])
def test_an_encoder_without_vectors_hears_nothing(
    width: int, has: str, lacks: str, sdxl: Bare, teach: Teach, embeddings: Path, caplog: Any
) -> None:
    """Not the word of another embedding, which the user has under the same name."""
    save_file({"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)}, embeddings / "foo.safetensors")
    found, _ = teach(sdxl, {"foo.emb_params": (value := vectors(4, width))})
    tokens = found.tokenize("a embedding:foo b")
    assert torch.equal(tokens_of(tokens[has]), value)
    assert same_tokens(tokens[lacks], sdxl.tokenize("a b")[lacks])
    assert caplog.text == ""


def test_flux_and_its_t5(pack: ModuleType, teach: Teach, embeddings: Path) -> None:
    import comfy.text_encoders.flux

    flux = Bare(comfy.text_encoders.flux.FluxTokenizer(embedding_directory=[str(embeddings)]))
    small, large = vectors(2, 768), vectors(3, 4096)
    found, report = teach(flux, {"<foo>.clip_l": small, "<foo>.t5": large, "<foo>.t5_out": large})
    tokens = found.tokenize("a embedding:foo b")
    assert torch.equal(tokens_of(tokens["l"]), small)
    assert torch.equal(tokens_of(tokens["t5xxl"]), large)
    assert "bundle_emb.<foo>.t5_out: it replaces" in report


def test_sd2_calls_its_encoder_by_another_name(pack: ModuleType, teach: Teach, embeddings: Path) -> None:
    import comfy.text_encoders.sd2_clip

    sd2 = Bare(comfy.text_encoders.sd2_clip.SD2Tokenizer(embedding_directory=[str(embeddings)]))
    found, report = teach(sd2, {"foo.clip_l": (value := vectors(2, 1024)), "bar.clip_l": vectors(2, 768)})
    assert torch.equal(tokens_of(found.tokenize("embedding:foo")["h"]), value)
    assert "bundle_emb.bar.clip_l: its vectors have 768 numbers, but clip_h takes 1024" in report


def test_a_clip_that_was_loaded_without_an_embeddings_folder(pack: ModuleType, teach: Teach) -> None:
    """Its tokenizers take "embedding:" for text; of a word that is not in the file they still do."""
    import comfy.sdxl_clip

    plain = Bare(comfy.sdxl_clip.SDXLTokenizer())
    found, _ = teach(plain, {"foo.clip_l": (value := vectors(2, 768))})
    assert torch.equal(tokens_of(found.tokenize("a embedding:foo b")["l"]), value)
    assert same_tokens(found.tokenize("a embedding:bar b"), plain.tokenize("a embedding:bar b"))
    assert same_tokens(found.tokenize("a embedding:foo")["g"], plain.tokenize("a embedding:foo")["g"])
    assert plain.tokenizer.clip_l.embedding_directory is None
    again, _ = teach(found, {"bar.clip_l": (other := vectors(1, 768))})
    assert torch.equal(
        tokens_of(again.tokenize("embedding:foo embedding:bar")["l"]), torch.cat((value, other))
    )
    assert same_tokens(again.tokenize("a embedding:x b"), plain.tokenize("a embedding:x b"))


def test_a_clip_that_knows_no_embeddings(teach: Teach) -> None:
    class Other:
        def tokenize_with_weights(self, text: str) -> dict[str, Any]:
            return {"text": text}

    clip = Bare(Other())
    found, report = teach(clip, {"foo.clip_l": vectors()})
    assert found is clip
    assert "bundle_emb.foo.clip_l: the text encoder of this CLIP knows no embeddings" in report


def test_a_host_that_answers_with_the_name_as_well(pack: ModuleType, teach: Teach, embeddings: Path) -> None:
    """Newer hosts end a word at a bracket, and give back three things."""
    import comfy.sd1_clip

    class Newer(comfy.sd1_clip.SDTokenizer):
        def _try_get_embedding(self, embedding_name: str) -> tuple[Any, str, str]:
            name, *rest = embedding_name.split()
            leftover = " ".join(rest)
            if "<" in name:
                name, _, end = name.partition("<")
                leftover = f"<{end} {leftover}".strip()
            stripped = name.strip(",")
            found = comfy.sd1_clip.load_embed(stripped, self.embedding_directory, 768, "clip_l")
            return found, name, f"{name[len(stripped) :]} {leftover}".strip()

    tokenizer = Newer(embedding_directory=[str(embeddings)])
    value = vectors(2, 768)
    found, _ = teach(Bare(tokenizer), {"foo.clip_l": value})
    for text in ("foo bar", "foo<|end|> bar", "foo, bar", "foo,<|end|>", "nobody<|end|> bar"):
        embed, name, leftover = found.tokenizer._try_get_embedding(text)
        expected = tokenizer._try_get_embedding(text)
        assert (name, leftover) == expected[1:], text
        assert (embed is value) == text.startswith("foo"), text
