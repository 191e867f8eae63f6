"""Embeddings into adapter files and out again: every form of their files, steps, and hostile words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles import same_bits
from safetensors.torch import load_file, save_file
from torch import Tensor

from lycoris_algos import LycorisError, from_tensors, load, save
from lycoris_algos.cli import main
from lycoris_algos.io import possible_name
from lycoris_algos.network import content_hash, load_embedding, pack, to_tensors, unpack

LORA = {"lora_unet_a.lora_up.weight": torch.ones(4, 2), "lora_unet_a.lora_down.weight": torch.ones(2, 4)}
SDXL = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
ONETRAINER = {
    **SDXL,
    "t5": torch.randn(2, 4096),
    "clip_l_out": torch.randn(1, 768),
    "t5_out": torch.randn(1, 4096),
}


def a1111(path: Path, vectors: Tensor) -> Path:
    """An embedding as A1111 saves it."""
    table = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": path.stem,
        "step": 300,
        "sd_checkpoint": None,
    }
    torch.save(table, path)
    return path


def test_every_form_of_an_embeddings_file(tmp_path: Path) -> None:
    vectors = torch.randn(3, 768)
    assert same_bits(load_embedding(a1111(tmp_path / "a.pt", vectors))["string_to_param.*"], vectors)
    forms: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {
        "kohya": ({"emb_params": vectors}, {"emb_params": vectors}),
        "SDXL": (SDXL, SDXL),
        "OneTrainer": (ONETRAINER, ONETRAINER),
        "diffusers": ({"<my.cat>": vectors}, {"emb_params": vectors}),
    }
    for name, (stored, expected) in forms.items():
        save_file(stored, tmp_path / f"{name}.safetensors")
        read = load_embedding(tmp_path / f"{name}.safetensors")
        assert read.keys() == expected.keys()
        assert all(same_bits(read[part], value) for part, value in expected.items())


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (LORA, r"no embedding: it holds 'lora_unet_a\.lora_"),
        ({"x": torch.ones(2, 3, 4)}, r"no embedding.*shape \(count, width\)"),
        ({"clip_l": torch.ones(2, 768), "other": torch.ones(2)}, "it holds 'other'"),
        ({"emb_params": torch.tensor([[1.0, torch.nan]])}, "NaN or infinite"),
        ({"emb_params": torch.ones(2, 2, dtype=torch.int32)}, "floating-point vectors"),
    ],
)
def test_files_that_are_no_embeddings(stored: dict[str, Tensor], reason: str, tmp_path: Path) -> None:
    save_file(stored, tmp_path / "e.safetensors")
    with pytest.raises(LycorisError, match=rf"^file 'e\.safetensors'.*{reason}"):
        load_embedding(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    "parts", [SDXL, ONETRAINER, {"emb_params": torch.randn(4, 1024)}], ids=["SDXL", "OneTrainer", "SD2"]
)
def test_packed_and_unpacked_is_what_it_was(parts: dict[str, Tensor], tmp_path: Path) -> None:
    own = from_tensors(LORA, {"ss_tag_frequency": "{}", "sshs_model_hash": "old"}, name="a.safetensors")
    written = load(save(pack(own, {"my cat": parts}), tmp_path / "b.safetensors"))
    assert written.embeddings.keys() == {"my cat"}
    assert {key for key in to_tensors(written) if key.startswith("bundle_emb.")} == {
        f"bundle_emb.my cat.{part}" for part in parts
    }
    assert written.metadata["ss_tag_frequency"] == "{}"
    assert "sshs_model_hash" not in written.metadata
    rest, words = unpack(written)
    assert content_hash(rest) == content_hash(own)
    assert rest.metadata["ss_tag_frequency"] == "{}"
    assert words["my cat"].keys() == parts.keys()
    assert all(same_bits(words["my cat"][part], value) for part, value in parts.items())
    with pytest.raises(LycorisError, match="has an embedding 'my cat' already"):
        pack(written, {"my cat": parts})


def test_what_names_no_encoder_gets_the_usual_name() -> None:
    vectors = torch.ones(1, 768)
    for part in ("string_to_param.*", "", "emb_params"):
        key = f"bundle_emb.x.{part}".rstrip(".")
        _, words = unpack(from_tensors({**LORA, key: vectors}))
        assert [*words["x"]] == ["emb_params"]
    both = {"bundle_emb.x.string_to_param.*": vectors, "bundle_emb.x.emb_params": 2 * vectors}
    _, words = unpack(from_tensors({**LORA, **both}))
    assert {part: value.max() for part, value in words["x"].items()} == {
        "string_to_param.*": 1,
        "emb_params": 2,
    }


def test_batches_belong_together_by_their_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, words, out, back = (tmp_path / name for name in ("files", "words", "out", "back"))
    files.mkdir()
    words.mkdir()
    for step in (100, 200):
        save_file(LORA, files / f"style-step{step}.safetensors")
        a1111(words / f"cat-{step}.pt", torch.full((1, 768), float(step)))
    save_file(SDXL, words / "dog-200.safetensors")
    save_file(SDXL, words / "bird-300.safetensors")
    assert main(["pack", str(files), "--embeddings", str(words), "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert "left alone, nothing is of the same step: bird-300.safetensors" in printed.err
    assert [Path(line).name for line in printed.out.split()] == [
        "style-bundle-100.safetensors",
        "style-bundle-200.safetensors",
    ]
    second = load(out / "style-bundle-200.safetensors")
    assert {word: {*parts} for word, parts in second.embeddings.items()} == {
        "cat": {"string_to_param.*"},
        "dog": {"clip_l", "clip_g"},
    }

    assert main(["unpack", str(out), str(files), "-o", str(back)]) == 0
    assert "left alone, it has no embeddings: 'style-step100.safetensors'" in capsys.readouterr().err
    assert sorted(path.name for path in back.iterdir()) == [
        "cat-100.safetensors",
        "cat-200.safetensors",
        "dog-200.safetensors",
        "style-100.safetensors",
        "style-200.safetensors",
    ]
    assert load_file(back / "cat-200.safetensors")["emb_params"].max() == 200
    assert load_file(back / "dog-200.safetensors").keys() == SDXL.keys()
    assert load_file(back / "style-100.safetensors").keys() == LORA.keys()

    save_file(LORA, files / "other-100.safetensors")
    assert main(["pack", str(files), "--embeddings", str(words), "-o", str(out)]) == 1
    assert "are of one step" in capsys.readouterr().err
    few = [str(words / "dog-200.safetensors"), str(words / "bird-300.safetensors")]
    assert main(["pack", str(files), "--embeddings", *few, "-o", str(tmp_path / "all"), "--all"]) == 0
    assert all({*load(path).embeddings} == {"dog", "bird"} for path in (tmp_path / "all").iterdir())
    assert main(["pack", few[0], "--embeddings", few[1], "-o", str(out)]) == 1
    assert "nothing to pack" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["../../x", "/etc/x", "C:\\x", "con", "a\nb", "..", ".hidden", "日本 語", "x" * 500]
)
def test_words_cannot_leave_the_folder(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = torch.ones(1, 768)
    save_file({**LORA, f"bundle_emb.{word}.emb_params": vectors}, tmp_path / "b.safetensors")
    out = tmp_path / "deep" / "out"
    assert main(["unpack", str(tmp_path / "b.safetensors"), "-o", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    name = possible_name(word) or "embedding"
    assert load_file(out / f"{name}.safetensors").keys() == {"emb_params"}
