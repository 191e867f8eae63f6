"""Pieces of formulas that several algorithms share, by loops and outer products."""

from __future__ import annotations

import numpy as np

from ._registry import Arrays


def ratio(tensors: Arrays, rank: int) -> float:
    """alpha / rank; 1 for a file without alpha; ``scale`` replaces both."""
    if "scale" in tensors:
        return float(tensors["scale"].reshape(()))
    return float(tensors["alpha"].reshape(())) / rank if "alpha" in tensors else 1.0


def matrix(value: np.ndarray) -> np.ndarray:
    return value.reshape(value.shape[0], -1)


def two_factors(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Σ_a left[:, a] ∘ right[a, :], one rank at a time."""
    left, right = matrix(left), matrix(right)
    total = np.zeros((left.shape[0], right.shape[1]))
    for a in range(right.shape[0]):
        total += np.multiply.outer(left[:, a], right[a])
    return total


def tucker(core: np.ndarray, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """ΔW[p, q, k…] = Σ_ab core[a, b, k…]·outer[p, a]·inner[b, q], one place of the kernel at a time."""
    kernel = core.shape[2:]
    total = np.zeros((outer.shape[0], inner.shape[1], *kernel))
    for place in np.ndindex(*kernel):
        at = (slice(None), slice(None), *place)
        total[at] = outer @ core[at] @ inner
    return total
