"""Names of layers that fuse several, and what the parts are called where a model keeps them apart."""

from __future__ import annotations

import re
from collections.abc import Iterator

_QUERY_KEY_VALUE = (
    ("to_q", "to_k", "to_v"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
    ("w1q", "w1k", "w1v"),
    ("query", "key", "value"),
)
_KEY_VALUE = tuple(names[1:] for names in _QUERY_KEY_VALUE)
_ADDED = (("add_q_proj", "add_k_proj", "add_v_proj"), ("w2q", "w2k", "w2v"))
_WITH_MLP = tuple((*names, "proj_mlp") for names in _QUERY_KEY_VALUE)

#: Last word of a flattened path: the possible names of its parts, in order.
_FUSED: dict[str, tuple[tuple[str, ...], ...]] = {
    "added_qkv": _ADDED,
    "qkv_mlp": _WITH_MLP,
    "linear1": _WITH_MLP,
    "in_proj": _QUERY_KEY_VALUE,
    "Wqkv": _QUERY_KEY_VALUE,
    "qkv_proj": _QUERY_KEY_VALUE,
    "qkv": _QUERY_KEY_VALUE,
    "kv_linear": _KEY_VALUE,
    "kv_proj": _KEY_VALUE,
    "kv": _KEY_VALUE,
}
_LAST = re.compile(rf"(?P<parent>.+?)_(?:to_)?(?P<word>{'|'.join(_FUSED)})")


def split_names(flat_path: str) -> Iterator[tuple[str, ...]]:
    """Flattened paths of the parts, in order of their rows, if ``flat_path`` names a fused layer.

    Yields every spelling that a model may have; nothing for a layer that is not fused.
    """
    match = _LAST.fullmatch(flat_path)
    for names in _FUSED[match["word"]] if match else ():
        yield tuple(f"{match['parent']}_{name}" for name in names)  # type: ignore[index]
