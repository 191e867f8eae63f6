"""Shares out a budget of bytes among layers: ranks go to the layers where they keep most of the change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadValueError
from ..text import Brief


@dataclass(frozen=True, eq=False)
class Demand(Brief):
    """One layer in a budget: its spectrum (k,), the bytes of a rank, and what its tensors cost besides."""

    values: Tensor
    bytes_per_rank: int
    overhead: int


def allocate(demands: Mapping[str, Demand], budget: int, fixed: int) -> dict[str, int]:
    """Ranks per layer so that all bytes stay within ``budget`` (``fixed`` of them are spent already).

    Greedy by S² per byte, which is optimal for the squared error of everything together. A layer may get 0.
    Raises BadValueError if not even one rank fits.
    """
    names = list(demands)
    gains = [demands[n].values.double().square() / demands[n].bytes_per_rank for n in names]
    if not gains:
        return {}
    owner = torch.cat([torch.full((g.numel(),), i) for i, g in enumerate(gains)])
    order = torch.cat(gains).argsort(descending=True, stable=True)
    ranks = dict.fromkeys(names, 0)
    closed: set[str] = set()
    left = budget - fixed
    values = torch.cat(gains)[order].tolist()
    for gain, index in zip(values, owner[order].tolist(), strict=True):
        name = names[index]
        cost = demands[name].bytes_per_rank + (0 if ranks[name] else demands[name].overhead)
        if gain <= 0.0 or name in closed:
            continue
        if cost > left:  # a smaller layer may still fit, but this one's later ranks must not jump the queue
            closed.add(name)
            continue
        ranks[name] += 1
        left -= cost
    if not any(ranks.values()):
        smallest = fixed + min(d.bytes_per_rank + d.overhead for d in demands.values())
        raise BadValueError(
            f"a budget of {budget / 1e6:g} MB is too small: norms, biases and one rank of one layer take "
            f"{math.ceil(smallest / 1e4) / 100:g} MB"
        )
    return ranks
