"""Prompts with embeddings in them, and what tokenizers make of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROMPTS = [
    "embedding:foo bar",
    "a photo of embedding:foo, in the park",
    "embedding:foo,",
    "a\nembedding:foo\nb",
    "(embedding:foo:1.2) bar",
    "a (embedding:foo) ((b)) embedding:foo",
    "foo embedding:foo embedding:foo,bar, embedding:nobody end",
    "embedding:foo " * 30 + "and so on",
    "no such word",
    "",
]


def vectors(count: int = 3, width: int = 768) -> Tensor:
    return torch.randn(count, width) * 0.02


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two results of ``tokenize`` are the same, vectors bit for bit."""

    def flat(value: Any) -> Any:
        if isinstance(value, Tensor):
            return ("vector", value.dtype, value.tolist())
        if isinstance(value, dict):
            return {key: flat(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [flat(item) for item in value]
        return value

    return bool(flat(one) == flat(other))
