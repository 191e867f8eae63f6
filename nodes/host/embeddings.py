"""Embeddings of adapter files as words of a prompt: ``embedding:NAME``, for one CLIP and its clones only.

ComfyUI's tokenizers look such a word up in the user's folder. The CLIP that is handed on gets copies of its
tokenizers, whose look-up asks the files of the stack first and then the original. Nothing else changes: the
classes, the CLIP that came in and its other clones stay as they are, and nothing is written to disk.

Embeddings are words, not weights: no strength turns them off; a prompt may weigh them, as any other word.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...lycoris_algos import AdapterSet, Unmatched
from ...lycoris_algos.network.bundles import embedding_key, encoder_of, is_output
from ...lycoris_algos.text import Brief, quoted, single_line

# Encoders by other names than a file has for them, if the width is right: clip_h is SD 2's.
_ALSO = {"clip_l": ("clip_h",)}
_OUTPUT = "it replaces what a text encoder puts out, and ComfyUI has no place for such vectors"


@dataclass(frozen=True)
class _Encoder:
    """A text encoder, as its tokenizer describes it."""

    key: str
    width: int

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` in a file means this encoder: "t5" is "t5xxl"."""
        return self.key.startswith((name, *_ALSO.get(name, ())))


@dataclass(eq=False)
class FileWords(Brief):
    """What became of the embeddings of one file: lines for a report, and what cannot be used."""

    lines: list[str] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Words(Brief):
    """The words of a stack in one CLIP: the vectors of each encoder, and what to say about each file."""

    vectors: Mapping[str, Mapping[_Encoder, Tensor]]
    files: Sequence[FileWords]


def fit_words(stack: Sequence[AdapterSet], clip: Any) -> Words:
    """Finds out which embeddings of ``stack`` the encoders of ``clip`` can take. A later file wins."""
    tokenizer = getattr(clip, "tokenizer", None)
    encoders = list(dict.fromkeys(map(_encoder, _tokenizers(tokenizer))))
    known = {word for inner in _tokenizers(tokenizer) for word in _words_of(inner)}
    vectors: dict[str, Mapping[_Encoder, Tensor]] = {}
    owner: dict[str, int] = {}
    files = [FileWords() for _ in stack]
    claims: list[tuple[int, str, Mapping[_Encoder, Tensor]]] = []
    for number, adapters in enumerate(stack):
        # Names that are words as they stand come before those that have to be changed for it.
        for name in sorted(adapters.embeddings, key=lambda name: _word(name) != name):
            word = _word(name)
            fitted = _fit(name, word, adapters.embeddings[name], encoders, files[number])
            if fitted and owner.get(word) == number:
                taken = f"another one of this file is embedding:{single_line(word)}"
                files[number].lines.append(f"embedding {quoted(name)} is not used: {taken}")
            elif fitted:
                vectors[word], owner[word] = fitted, number
                claims.append((number, word, fitted))
    for number, word, fitted in claims:
        winner = stack[owner[word]]
        if winner is stack[number]:
            files[number].lines.append(_usable(word, fitted, known))
        else:
            later = f"{quoted(winner.name)}, which comes later, has it too"
            files[number].lines.append(f"embedding:{single_line(word)} is not used: {later}")
    return Words(vectors, files)


def with_words(patched: Any, original: Any, words: Words) -> Any:
    """``patched`` (``original`` itself or a clone of it) as a clone of ``original`` that knows ``words``."""
    if not words.vectors:
        return patched
    clone = original.clone() if patched is original else patched
    clone.tokenizer = _knowing(original.tokenizer, words, {})
    return clone


def _usable(word: str, vectors: Mapping[_Encoder, Tensor], known: set[str]) -> str:
    counts = [f"{encoder.key} ({_count(value)})" for encoder, value in vectors.items()]
    instead = ", instead of that of an earlier node" if word in known else ""
    return f"embedding:{single_line(word)} is a word for {' and '.join(counts)}{instead}"


def _count(value: Tensor) -> str:
    count = value.shape[0] if value.dim() == 2 else 1
    return f"{count} vector{'' if count == 1 else 's'}"


# ---- which vectors are for which encoder ------------------------------------------------------------------


def _fit(
    name: str,
    word: str,
    parts: Mapping[str, Tensor],
    encoders: Sequence[_Encoder],
    report: FileWords,
) -> dict[_Encoder, Tensor]:
    """The vectors of an embedding by encoder; what cannot be used goes to ``report``."""
    fitted: dict[_Encoder, Tensor] = {}
    # Parts that name their encoder come before those that only their width places.
    for part in sorted(parts, key=lambda part: encoder_of(part) is None):
        value = parts[part]
        fitting = [encoder for encoder in encoders if _fits(part, value, encoder)]
        free = [encoder for encoder in fitting if encoder not in fitted]
        reason = ""
        if is_output(part):
            reason = _OUTPUT
        elif not fitting:
            reason = _misfit(part, value, encoders)
        elif not word:
            reason = "a prompt cannot spell its name: rename it"
        elif not free:
            reason = f"this embedding has other vectors for {fitting[0].key}"
        if reason:
            report.unmatched.append(Unmatched(embedding_key(name, part), reason))
        else:
            fitted.update(dict.fromkeys(free, value))
    return fitted


def _fits(part: str, value: Tensor, encoder: _Encoder) -> bool:
    name = encoder_of(part)
    return encoder.width == value.shape[-1] and (name is None or encoder.answers_to(name))


def _misfit(part: str, value: Tensor, encoders: Sequence[_Encoder]) -> str:
    """Why no encoder takes the vectors ``value`` of ``part``."""
    if not encoders:
        return "the text encoder of this CLIP knows no embeddings"
    name = encoder_of(part)
    named = [encoder for encoder in encoders if name is None or encoder.answers_to(name)]
    if not named:
        return f"it is for the text encoder {name}, and this CLIP has {_list(e.key for e in encoders)}"
    takes = _list(f"{encoder.key} takes {encoder.width}" for encoder in named)
    return f"its vectors have {value.shape[-1]} numbers, but {takes}: it was trained for another model"


def _list(names: Iterator[str]) -> str:
    return " and ".join(names)


def _word(name: str) -> str:
    """``name`` as a prompt can spell it, or "": without the brackets that trainers put around, or blanks."""
    word = "_".join(name.strip("<>[], \t\r\n").split())
    if any(character in "<[" or unicodedata.category(character) == "Cc" for character in word):
        return ""
    return word


# ---- tokenizers -------------------------------------------------------------------------------------------


class _LookUp:
    """Takes the place of ``_try_get_embedding`` in one copy of a tokenizer.

    ``vectors`` are by word; every other word is left to ``tokenizer``, of which this one is a copy.
    """

    def __init__(self, tokenizer: Any, vectors: Mapping[str, Tensor]) -> None:
        self.tokenizer = tokenizer
        self.vectors = vectors
        # Says where this host ends a word, and in which form it wants the answer. It looks into no folder.
        self._splitter = copy.copy(tokenizer)
        self._splitter.embedding_directory = []

    def __call__(self, embedding_name: str) -> tuple[Any, ...]:
        answer = type(self.tokenizer)._try_get_embedding(self._splitter, embedding_name)
        word = answer[1] if len(answer) > 2 else embedding_name.split()[0]
        vectors = self.vectors.get(word.strip(","))
        if vectors is not None:
            return (vectors, *answer[1:])
        if self.tokenizer.embedding_directory is None:  # such a tokenizer takes the word for plain text
            return (None, *answer[1:-1], f"{self.tokenizer.embedding_identifier}{embedding_name}")
        behind: tuple[Any, ...] = self.tokenizer._try_get_embedding(embedding_name)
        return behind


def _looks_up(tokenizer: Any) -> bool:
    return hasattr(tokenizer, "_try_get_embedding") and hasattr(tokenizer, "embedding_size")


def _inner(tokenizer: Any) -> dict[str, Any]:
    """The tokenizers that ``tokenizer`` is made of, by attribute."""
    attributes = getattr(tokenizer, "__dict__", {})
    return {name: value for name, value in attributes.items() if hasattr(value, "tokenize_with_weights")}


def _tokenizers(tokenizer: Any) -> Iterator[Any]:
    """Every tokenizer in ``tokenizer``, which may be one itself, that looks embeddings up."""
    if _looks_up(tokenizer):
        yield tokenizer
    else:
        for inner in _inner(tokenizer).values():
            yield from _tokenizers(inner)


def _encoder(tokenizer: Any) -> _Encoder:
    return _Encoder(tokenizer.embedding_key, tokenizer.embedding_size)


def _words_of(tokenizer: Any) -> Iterator[str]:
    """The words that earlier nodes taught ``tokenizer``."""
    look_up = vars(tokenizer).get("_try_get_embedding")
    while isinstance(look_up, _LookUp):
        yield from look_up.vectors
        look_up = vars(look_up.tokenizer).get("_try_get_embedding")


def _knowing(tokenizer: Any, words: Words, done: dict[int, Any]) -> Any:
    """A copy of ``tokenizer`` and of all that it is made of, which knows ``words``."""
    if id(tokenizer) not in done:
        done[id(tokenizer)] = made = copy.copy(tokenizer)
        if _looks_up(tokenizer):
            _teach(made, tokenizer, words)
        else:
            for name, inner in _inner(tokenizer).items():
                setattr(made, name, _knowing(inner, words, done))
    return done[id(tokenizer)]


def _teach(made: Any, tokenizer: Any, words: Words) -> None:
    encoder = _encoder(tokenizer)
    # A word without vectors for this encoder says nothing to it, not what a file of the same name says.
    vectors = {
        word: found[encoder] if encoder in found else _nothing(found, encoder)
        for word, found in words.vectors.items()
    }
    if tokenizer.embedding_directory is None:
        vectors = {word: value for word, value in vectors.items() if value.numel()}
        if not vectors:
            return
        made.embedding_directory = []  # else it would not look anything up
    made._try_get_embedding = _LookUp(tokenizer, vectors)


def _nothing(vectors: Mapping[_Encoder, Tensor], encoder: _Encoder) -> Tensor:
    """No vectors at all, of the encoder's width."""
    return next(iter(vectors.values())).new_zeros((0, encoder.width))
