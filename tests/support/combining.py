"""What every combining method computes, from its paper's formula, in numpy float64; and layers to combine.

Nothing of the library is used in the formulas but its random numbers, which are part of its promise and are
tested on their own. Written with loops and sorts where the library uses selections and masks.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from samples import CASES, Case
from torch import Tensor

from lycoris_algos.merge.combine.methods import uniform

LINEAR = ("sum", "average", "model stock", "slerp", "subtract", "common part", "project off")
ELEMENTWISE = ("ties", "dare", "della", "breadcrumbs", "magnitude prune")
Arrays = Sequence[np.ndarray]


def variant(case: Case, number: int) -> dict[str, Tensor]:
    """The tensors of ``case`` with other numbers: another training of the same layer."""
    seed = torch.Generator().manual_seed(zlib.crc32(f"{case.name}{number}".encode()))
    keep = ("alpha", "scale", "on_input", "oft_R.scaled_oft", "reshape_weight", "bias_indices", "bias_size")
    return {
        name: value.clone()
        if name in keep or not value.is_floating_point()
        else value * (1 + torch.randn(value.shape, generator=seed) * 0.5)
        for name, value in case.tensors.items()
    }


def one_per_algorithm(algos: Sequence[str]) -> list[Case]:
    """A Linear and a convolution of each algorithm, and every combination of algorithms once."""
    found: dict[tuple[object, ...], Case] = {}
    for case in CASES:
        if set(algos) & {*case.algos, *case.bias_algos}:
            found.setdefault((case.algos, case.bias_algos, len(case.shape)), case)
    return list(found.values())


def expected(
    method: str,
    deltas: Arrays,
    weights: Sequence[float],
    *,
    density: float = 0.5,
    epsilon: float = 0.2,
    gamma: float = 0.01,
    seed: int = 0,
    layer: str = "",
) -> np.ndarray:
    """D of ``method``; the deltas are matrices."""
    pairs = list(zip(deltas, weights, strict=True))
    if method == "sum":
        return sum(w * d for d, w in pairs)
    if method == "average":
        return sum(w * d for d, w in pairs) / sum(map(abs, weights))
    if method == "subtract":
        return weights[0] * deltas[0] - sum(w * d for d, w in pairs[1:])
    if method in ("common part", "project off"):
        basis = np.stack([d.ravel() for d in deltas[1:]], axis=1)
        whole = weights[0] * deltas[0]
        shared = (basis @ np.linalg.lstsq(basis, whole.ravel(), rcond=1e-12)[0]).reshape(whole.shape)
        return shared if method == "common part" else whole - shared
    if method == "model stock":
        signed = [w * d for d, w in pairs]
        cosines = [
            (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
            for i, a in enumerate(signed)
            for b in signed[i + 1 :]
        ]
        n, cosine = len(signed), float(np.mean(cosines))
        t = min(1.0, n * cosine / (1 + (n - 1) * cosine)) if cosine > 0 else 0.0
        return t * sum(signed) / n
    if method == "slerp":
        return _slerp(deltas, weights)
    if method == "knots":
        return _knots(deltas, weights, density)
    kept = [_thinned(method, d, density, epsilon, gamma, seed, layer, i) for i, d in enumerate(deltas)]
    return _elect(kept, weights) if method in ("ties", "della") else _weighted(kept, weights)


def _weighted(deltas: Arrays, weights: Sequence[float]) -> np.ndarray:
    return sum(w * d for d, w in zip(deltas, weights, strict=True))


def _slerp(deltas: Arrays, weights: Sequence[float]) -> np.ndarray:
    (a, b), (w1, w2) = deltas, weights
    a, b = math.copysign(1, w1) * a, math.copysign(1, w2) * b
    t = abs(w2) / (abs(w1) + abs(w2))
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    theta = math.acos(float((a * b).sum() / (na * nb)))
    unit = (math.sin((1 - t) * theta) * a / na + math.sin(t * theta) * b / nb) / math.sin(theta)
    return ((1 - t) * na + t * nb) * unit


def _knots(deltas: Arrays, weights: Sequence[float], density: float) -> np.ndarray:
    u, s, vh = np.linalg.svd(np.concatenate(deltas, axis=1), full_matrices=False)
    used = s > s[0] * 1e-6
    width = deltas[0].shape[1]
    blocks = [vh[used, i * width : (i + 1) * width] for i in range(len(deltas))]
    merged = _elect([_largest(block, density) for block in blocks], weights)
    return (u[:, used] * s[used]) @ merged


def _largest(delta: np.ndarray, density: float) -> np.ndarray:
    count = max(1, math.ceil(density * delta.size - 1e-9))
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")[:count]
    kept = np.zeros(delta.size)
    kept[order] = delta.ravel()[order]
    return kept.reshape(delta.shape)


def _thinned(
    method: str,
    delta: np.ndarray,
    density: float,
    epsilon: float,
    gamma: float,
    seed: int,
    layer: str,
    index: int,
) -> np.ndarray:
    if method in ("ties", "magnitude prune"):
        return _largest(delta, density)
    if method == "breadcrumbs":
        order = np.argsort(np.abs(delta).ravel(), kind="stable")
        top, bottom = int(gamma * delta.size), max(0, int((1 - density - gamma) * delta.size))
        kept = np.zeros(delta.size)
        chosen = order[bottom : delta.size - top]
        kept[chosen] = delta.ravel()[chosen]
        return kept.reshape(delta.shape)
    drawn = uniform(torch.zeros(delta.shape), seed, layer, index).double().numpy()
    if method == "dare":
        return np.where(drawn < density, delta / density, 0)
    thinned = np.zeros_like(delta)
    for row, values in enumerate(delta):
        ranks = np.empty(len(values))
        ranks[np.argsort(np.abs(values), kind="stable")] = np.arange(len(values))
        keep = density - epsilon / 2 + epsilon * ranks / max(1, len(values) - 1)
        keep = np.clip(keep, 1e-6, 1.0)
        thinned[row] = np.where(drawn[row] < keep, values / keep, 0)
    return thinned


def _elect(deltas: Arrays, weights: Sequence[float]) -> np.ndarray:
    result = np.zeros(deltas[0].shape)
    for position in np.ndindex(result.shape):
        values = [(d[position] * w, abs(w)) for d, w in zip(deltas, weights, strict=True)]
        sign = np.sign(sum(v for v, _ in values))
        agree = [(v, w) for v, w in values if sign != 0 and np.sign(v) == sign]
        if agree:
            result[position] = sum(v for v, _ in agree) / sum(w for _, w in agree)
    return result
