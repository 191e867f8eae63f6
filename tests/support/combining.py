"""What every combining method computes, from its paper's formula, in numpy float64; and layers to combine.

Nothing of the library is used in the formulas but its random numbers, which are part of its promise and are
tested on their own. Written with loops and sorts where the library uses selections and masks.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from samples import CASES, Case
from torch import Tensor

from lycoris_algos.merge.combine.methods.dropping import uniform

Arrays = Sequence[np.ndarray]


def _draw(name: str) -> Callable[..., Tensor]:
    seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return lambda *shape, std=0.3: torch.randn(shape, generator=seed) * std


def _dependent() -> Iterator[Case]:
    """Layers whose change depends on the weight, on a Linear of 24×16 and a 3×3 convolution of 16 and 8."""
    linear, conv = (24, 16), (16, 8, 3, 3)
    draw = _draw("dependent")
    one = torch.ones(())

    def case(algos: str, tensors: dict[str, Tensor], shape: tuple[int, ...] = linear, more: str = "") -> Case:
        return Case(f"dependent{more}", tuple(algos.split("+")), tensors, shape)

    for shape in (linear, conv):
        o, i, *kernel = shape
        ones = [1] * len(kernel)
        glora = {"a1.weight": draw(i, 2, *ones), "a2.weight": draw(2, i, *ones), "alpha": one}
        glora |= {"b1.weight": draw(o, 2, *ones), "b2.weight": draw(2, i, *kernel)}
        yield case("glora", glora, shape)
        glokr = {"glokr_a_w1": draw(4, 4), "glokr_a_w2": draw(i // 4, i // 4), "alpha": one}
        glokr |= {"glokr_b_w1": draw(4, 4), "glokr_b_w2": draw(o // 4, i // 4, *kernel)}
        yield case("glokr", glokr, shape)
        for side, size in ((0, o), (1, i)):
            vector = draw(1, size, *ones) if kernel else draw(size)
            yield case("ia3", {"weight": vector, "on_input": torch.tensor(side)}, shape, f"-{side}")
        blocks = {"oft_blocks": draw(o // 8, 8, 8), "alpha": torch.zeros(())}
        yield case("oft", blocks, shape)
        yield case("oft", {**blocks, "rescale": 1 + draw(o, 1, *ones)}, shape, "-rescaled")
        yield case("oft_v2", {"oft_R.weight": draw(2, 630 if kernel else 28, std=0.05)}, shape)
        for axis, size in ((0, o), (1, i)):
            magnitudes = 1 + draw(*(size if dim == axis else 1 for dim in range(len(shape)))).abs()
            lora = {"lora_up.weight": draw(o, 2, *ones), "lora_down.weight": draw(2, i, *kernel)}
            yield case("lora+dora", {**lora, "dora_scale": magnitudes}, shape, f"-{axis}")
        yield case("set", {"set_weight": draw(*shape)}, shape)
    lokr = {"lokr_w1": draw(4, 4), "lokr_w2": draw(6, 4)}
    yield case("lokr+dora", {**lokr, "dora_scale": 1 + draw(24, 1).abs()})
    hada = {f"hada_w{n}_a": draw(24, 2) for n in (1, 2)} | {f"hada_w{n}_b": draw(2, 16) for n in (1, 2)}
    yield case("loha+dora", {**hada, "dora_scale": 1 + draw(1, 16).abs()})
    lora = {"lora_up.weight": draw(24, 2), "lora_down.weight": draw(2, 16)}
    yield case("lora+dora_vector", {**lora, "lora_magnitude_vector": 1 + draw(24).abs()})
    yield case("ia3_peft", {"ia3_l": 1 + draw(1, 16)})
    yield Case("dependent-out", ("ia3_peft",), {"ia3_l": 1 + draw(24, 1)}, linear, ("ia3_peft_bias",))
    yield case("oft_split", {"oft_blocks.0": draw(2, 4, 4), "oft_blocks.1": draw(2, 8, 8)})
    yield case("oft_diag", {"oft_diag": torch.linalg.qr(draw(3, 8, 8))[0]})
    yield case("boft", {"oft_blocks": draw(3, 4, 4, 4)}, conv)
    yield case("boft_inputs", {"boft_R": draw(2, 4, 4, 4), "boft_s": 1 + draw(24, 1)})
    yield case("boft_diag", {"oft_diag": torch.linalg.qr(draw(3, 4, 4, 4))[0]}, conv)
    residual = {"bias_indices": torch.tensor([[0, 3, 3], [1, 2, 15]], dtype=torch.int16)}
    residual |= {"bias_values": draw(3), "bias_size": torch.tensor(linear, dtype=torch.int16)}
    yield case("lora+sparse", {**lora, **residual})
    u, s, vh = torch.linalg.svd(next(case("tlora", {}).targets()).weight())
    tlora = {"p_layer.weight": u[:, :3] + draw(24, 3, std=0.02), "lambda_layer": s[None, :3] * 1.1}
    yield case("tlora", {**tlora, "q_layer.weight": vh[:3] + draw(3, 16, std=0.02), "alpha": 3 * one})


DEPENDENT = list(_dependent())


def variant(case: Case, number: int) -> dict[str, Tensor]:
    """The tensors of ``case`` with other numbers: another training of the same layer."""
    draw = _draw(f"{case.name}{number}")
    keep = ("alpha", "scale", "on_input", "oft_R.scaled_oft", "bias_indices", "bias_size")
    spread = 0.02 if "tlora" in case.algos else 0.5
    return {
        name: value.clone()
        if name in keep or not value.is_floating_point()
        else value * (1 + draw(*value.shape, std=spread))
        for name, value in case.tensors.items()
    }


def one_per_algorithm() -> list[Case]:
    """A Linear and a convolution of each algorithm, and every combination of algorithms once."""
    found: dict[tuple[object, ...], Case] = {}
    for case in (*CASES, *DEPENDENT):
        if case.variant != "alpha_0" and "reshape_weight" not in case.tensors:
            key = (case.algos, case.bias_algos, len(case.shape), case.variant.removeprefix("dependent"))
            key = key if case in DEPENDENT else key[:3]
            found.setdefault(key, case)
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
