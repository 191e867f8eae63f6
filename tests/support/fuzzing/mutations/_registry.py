"""Where mutations register, and how they choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .._draft import Draft

Mutation = Callable[[Draft, int, int], None]
_T = TypeVar("_T")

#: Every mutation by the name of its function.
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    """Registers ``function``."""
    MUTATIONS[function.__name__] = function
    return function


def pick(choices: Sequence[_T], number: int) -> _T:
    """One of ``choices``."""
    return choices[number % len(choices)]


def on_tensor(change: Callable[[Tensor, int], Tensor]) -> Mutation:
    """A mutation of one tensor's numbers or shape, by a function of it and ``which``."""

    def mutate(draft: Draft, where: int, which: int) -> None:
        if draft.tensors:
            place = where % len(draft.tensors)
            name, tensor = draft.tensors[place]
            draft.tensors[place] = (name, change(tensor, which).clone(memory_format=torch.contiguous_format))

    mutate.__name__ = change.__name__
    return mutate
