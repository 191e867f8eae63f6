"""Which formula belongs to which algorithm, and what a whole layer makes of its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Arrays = Mapping[str, np.ndarray]
Formula = Callable[[Arrays, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Oracle:
    """One algorithm: the suffixes it reads, and ΔW from them and W."""

    keys: frozenset[str]
    formula: Formula
    sees: str


ORACLES: dict[str, Oracle] = {}


def oracle(algo: str, *keys: str, sees: str = "base") -> Callable[[Formula], Formula]:
    """Registers the decorated formula for the algorithm that the library calls ``algo``."""

    def register(formula: Formula) -> Formula:
        assert algo not in ORACLES, f"two oracles for {algo}"
        assert sees in ("base", "sum")
        ORACLES[algo] = Oracle(frozenset(keys), formula, sees)
        return formula

    return register


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Exactly the stored numbers: every dtype of a file fits into float64."""
    return tensor.detach().cpu().to(torch.float64).numpy()


def expected_delta(algos: Iterable[str], tensors: Mapping[str, Tensor], weight: Tensor) -> np.ndarray:
    """ΔW of a layer made of ``algos`` (the algorithm first, then the extras in order), in float64."""
    base = to_numpy(weight)
    arrays = {suffix: to_numpy(value) for suffix, value in tensors.items()}
    total = np.zeros(base.shape)
    for algo in algos:
        known = ORACLES[algo]
        own = {suffix: value for suffix, value in arrays.items() if suffix in known.keys}
        assert own, f"no tensors of {algo} among {sorted(arrays)}"
        delta = known.formula(own, base + total if known.sees == "sum" else base)
        assert delta.shape == base.shape, f"the oracle of {algo} answers in the wrong shape"
        total = total + delta
    return total
