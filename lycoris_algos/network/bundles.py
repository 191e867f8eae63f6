"""Embeddings (textual inversion) that travel inside an adapter file, under ``bundle_emb.NAME.PART``.

PART says what the vectors are for. LyCORIS' bundles keep the keys of the embedding file that went in:
``string_to_param.*`` and ``emb_params`` leave open which text encoder is meant (their width tells),
``clip_l`` and ``clip_g`` name one. OneTrainer names its encoders, and adds ``_out`` to vectors that replace
what an encoder puts out. A name may hold dots, so a key is split at the part, where it is a known one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..errors import BadValueError
from ..ops.rounding import count_broken
from ..text import quoted
from .adapter_set import Unmatched

#: {embedding's name: {part: vectors}}, the vectors of shape (count, width) or (width,).
Embeddings = Mapping[str, Mapping[str, Tensor]]

PREFIX = "bundle_emb."
#: What programs call vectors of which nothing says for which encoder they are.
OPEN_PART = "emb_params"
# Parts that do not say that; "" is a key without a part.
_OPEN_PARTS = (OPEN_PART, "")
_TABLE = "string_to_param."
_OUTPUT = "_out"
_ENCODERS = r"clip_[lgh]|t5(?:xxl)?|llama|gemma|qwen|mistral"
_PART = re.compile(rf"\.(string_to_param\.[^.]+|emb_params|(?:{_ENCODERS})(?:{_OUTPUT})?)\Z", re.DOTALL)


def take_embeddings(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], list[Unmatched]]:
    """(embeddings, the tensors of other keys, keys of embeddings that cannot be used and why).

    Raises BadValueError, naming the key, for vectors with NaN or infinity in them.
    """
    embeddings: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    strangers: list[Unmatched] = []
    for key, value in tensors.items():
        if not key.startswith(PREFIX):
            rest[key] = value
            continue
        pieces = _split(key)
        if pieces is None:
            strangers.append(Unmatched(key, "no known form of bundled embeddings has such a key"))
            continue
        name, part = pieces
        reason = _no_vectors(value)
        if reason:
            strangers.append(Unmatched(key, reason))
        else:
            _require_finite(key, value)
            embeddings.setdefault(name, {})[part] = value
    return embeddings, rest, strangers


def embedding_tensors(embeddings: Embeddings) -> dict[str, Tensor]:
    """{key: tensor} as a file holds them: the inverse of ``take_embeddings``."""
    return {embedding_key(n, part): value for n, own in embeddings.items() for part, value in own.items()}


def embedding_key(name: str, part: str) -> str:
    """The key of a file for the vectors ``part`` of the embedding ``name``."""
    return f"{PREFIX}{name}.{part}" if part else PREFIX + name


def is_part(part: str) -> bool:
    """Whether it is a known name for vectors of an embedding."""
    return _PART.fullmatch(f".{part}") is not None


def encoder_of(part: str) -> str | None:
    """The text encoder that ``part`` names, or None if it leaves that open."""
    if part in _OPEN_PARTS or part.startswith(_TABLE):
        return None
    return part.removesuffix(_OUTPUT)


def is_output(part: str) -> bool:
    """Whether the vectors replace what an encoder puts out, not what goes in."""
    return part.endswith(_OUTPUT)


def _split(key: str) -> tuple[str, str] | None:
    """(name, part) of a key, or None if it is of no known form."""
    path = key.removeprefix(PREFIX)
    match = _PART.search(path)
    if match is not None:
        return (path[: match.start()], match[1]) if match.start() else None
    return (path, "") if path and "." not in path else None


def _no_vectors(value: Tensor) -> str:
    """Why ``value`` cannot be an embedding's vectors, or ""."""
    if not value.is_floating_point():
        return f"an embedding is made of floating-point vectors, this is {str(value.dtype)[6:]}"
    if value.dim() not in (1, 2) or not value.numel():
        return f"an embedding has shape (count, width), this has {tuple(value.shape)}"
    return ""


def _require_finite(key: str, value: Tensor) -> None:
    if value.is_meta:  # an outline, without numbers
        return
    broken = count_broken(value)
    if broken:
        raise BadValueError(
            f"{quoted(key)} holds {broken} of {value.numel()} numbers that are NaN or infinite: "
            "the training that made this embedding diverged, or the file is damaged"
        )
