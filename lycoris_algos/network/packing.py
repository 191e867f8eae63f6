"""Embeddings packed into adapter files as a bundle, and unpacked again into files of their own.

An embedding's file is read in every form that programs write: A1111's (``string_to_param``), kohya's
(``emb_params``), SDXL's and OneTrainer's (vectors by text encoder), diffusers' (one tensor, called as the
word). It is written as safetensors, which all of them read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import LycorisError
from ..io import read_tensors
from ..text import listed, quoted
from .adapter_set import AdapterSet
from .bundles import OPEN_PART, Embeddings, embedding_key, encoder_of, is_part, take_embeddings
from .convert import convert


def load_embedding(path: str | Path) -> dict[str, Tensor]:
    """{part: vectors} of the embedding's file ``path``; parts are those of ``AdapterSet.embeddings``.

    Raises FileFormatError as ``load`` does, LycorisError for a file that is no embedding, BadValueError for
    vectors that hold NaN or infinity.
    """
    path = Path(path)
    tensors, _ = read_tensors(path)
    parts = {OPEN_PART if len(tensors) == 1 and not is_part(key) else key: tensors[key] for key in tensors}
    try:
        embeddings, _, strangers = take_embeddings(
            {embedding_key("x", part): value for part, value in parts.items()}
        )
        if strangers or [*embeddings] != ["x"]:
            odd = next((key for key in tensors if not is_part(key)), next(iter(tensors), ""))
            why = f" ({strangers[0].reason})" if strangers else ""
            raise LycorisError(f"it is no embedding: it holds {quoted(odd)}{why}")
    except LycorisError as error:
        raise error.with_context(f"file {quoted(path.name)}") from error
    return embeddings["x"]


def pack(adapter_set: AdapterSet, embeddings: Embeddings, *, title: str | None = None) -> AdapterSet:
    """``adapter_set`` with ``embeddings`` {word of a prompt: {part: vectors}} beside those that it has.

    Raises LycorisError for a word that it has already.
    """
    twice = [name for name in embeddings if name in adapter_set.embeddings]
    if twice:
        raise LycorisError(
            f"{quoted(adapter_set.name)} has an embedding {listed(twice, show=quoted)} already: "
            "unpack it first"
        )
    packed = convert(adapter_set, title=title)
    return replace(packed, embeddings={**packed.embeddings, **embeddings})


def unpack(adapter_set: AdapterSet, *, title: str | None = None) -> tuple[AdapterSet, Embeddings]:
    """(``adapter_set`` without embeddings, {word of a prompt: {key: tensor} of a file of its own})."""
    files = {name: _as_file(parts) for name, parts in adapter_set.embeddings.items()}
    return convert(adapter_set, title=title, embeddings=False), files


def _as_file(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``parts`` as programs look for them: what names no encoder is called ``emb_params``."""
    files: dict[str, Tensor] = {}
    for part, vectors in parts.items():
        is_first = encoder_of(part) is None and OPEN_PART not in parts and OPEN_PART not in files
        files[OPEN_PART if is_first else part or OPEN_PART] = vectors
    return files
