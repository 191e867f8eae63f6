"""What depends on the weight: GLoRA, GLoKr, (IA)³, T-LoRA, a replaced parameter, and DoRA."""

from __future__ import annotations

import numpy as np

from ._maths import matrix, ratio, tucker, two_factors
from ._registry import Arrays, oracle


def _through(weight: np.ndarray, square: np.ndarray) -> np.ndarray:
    """W·A: the input channels contracted, one place of the kernel at a time."""
    passed = np.zeros(weight.shape)
    for place in np.ndindex(*weight.shape[2:]):
        at = (slice(None), slice(None), *place)
        passed[at] = weight[at] @ square
    return passed


@oracle("glora", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "alpha")
def _glora(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    outputs, inputs = weight.shape[:2]
    a1, a2, b1, b2 = (matrix(tensors[f"{name}.weight"]) for name in ("a1", "a2", "b1", "b2"))
    if not (b1.shape[0] == outputs and a1.shape[0] == inputs and b1.shape[1] == a1.shape[1]):
        a1, a2, b1, b2 = a2, a1, b2, b1  # LyCORIS before 3.0
    added = tucker(tensors["bm.weight"], b1, b2) if "bm.weight" in tensors else two_factors(b1, b2)
    change = added.reshape(weight.shape) + _through(weight, two_factors(a1, a2))
    return ratio(tensors, a2.shape[0]) * change


@oracle(
    "glokr",
    *(f"glokr_{name}{end}" for name in ("a_w1", "a_w2", "b_w1", "b_w2") for end in ("", "_a", "_b")),
    *("glokr_b_t2", "alpha"),
)
def _glokr(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    ranks: list[int] = []

    def factor(name: str) -> np.ndarray:
        if f"glokr_{name}" in tensors:
            return tensors[f"glokr_{name}"]
        a, b = tensors[f"glokr_{name}_a"], tensors[f"glokr_{name}_b"]
        ranks.append(b.shape[0])
        if name == "b_w2" and "glokr_b_t2" in tensors:
            return tucker(tensors["glokr_b_t2"], a.T, b)
        return two_factors(a, b)

    passed = _through(weight, np.kron(factor("a_w1"), factor("a_w2")))
    added = np.kron(factor("b_w1"), matrix(factor("b_w2")))
    s = ratio(tensors, ranks[0]) if ranks else 1.0
    return s * (added.reshape(weight.shape) + passed)


def _scaled(weight: np.ndarray, factors: np.ndarray, axis: int) -> np.ndarray:
    """W times a number for each channel of ``axis``."""
    product = np.empty(weight.shape)
    for channel, factor in enumerate(factors.reshape(-1)):
        own = (channel,) if axis == 0 else (slice(None), channel)
        product[own] = weight[own] * factor
    return product


@oracle("ia3", "weight", "on_input")
def _ia3(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    return _scaled(weight, tensors["weight"], int(tensors["on_input"].reshape(())))


@oracle("ia3_peft", "ia3_l")
def _ia3_peft(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    factors = tensors["ia3_l"]
    return _scaled(weight, factors - 1, 1 if factors.shape[0] == 1 else 0)


@oracle("ia3_peft_bias", "ia3_l")
def _ia3_peft_bias(tensors: Arrays, bias: np.ndarray) -> np.ndarray:
    return _scaled(bias, tensors["ia3_l"] - 1, 0)


@oracle(
    "tlora",
    "q_layer.weight",
    "p_layer.weight",
    "lambda_layer",
    "base_q",
    "base_p",
    "base_lambda",
    "alpha",
)
def _tlora(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    q, p = matrix(tensors["q_layer.weight"]), matrix(tensors["p_layer.weight"])
    trained = two_factors(p * tensors["lambda_layer"].reshape(1, -1), q)
    if "base_q" in tensors:
        p, q = matrix(tensors["base_p"]), matrix(tensors["base_q"])
        start = two_factors(p * tensors["base_lambda"].reshape(1, -1), q)
        return ratio(tensors, q.shape[0]) * (trained - start).reshape(weight.shape)
    u, s, vh = np.linalg.svd(matrix(weight), full_matrices=False)
    start = np.zeros(trained.shape)
    for a in range(min(q.shape[0], len(s))):
        start += s[a] * np.multiply.outer(u[:, a], vh[a])
    return ratio(tensors, q.shape[0]) * (trained - start).reshape(weight.shape)


@oracle("set", "set_weight")
def _set(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    return tensors["set_weight"].reshape(weight.shape) - weight


@oracle("set_bias", "set_bias")
def _set_bias(tensors: Arrays, bias: np.ndarray) -> np.ndarray:
    return tensors["set_bias"] - bias


def _decomposed(combined: np.ndarray, magnitudes: np.ndarray, axis: int) -> np.ndarray:
    """V·d/‖V‖ − V, with a norm for each channel of ``axis``."""
    change = np.empty(combined.shape)
    for channel, magnitude in enumerate(magnitudes.reshape(-1)):
        own = (channel,) if axis == 0 else (slice(None), channel)
        values = combined[own]
        change[own] = values * magnitude / np.sqrt((values * values).sum()) - values
    return change


@oracle("dora", "dora_scale", sees="sum")
def _dora(tensors: Arrays, combined: np.ndarray) -> np.ndarray:
    scale = tensors["dora_scale"]
    outputs = combined.shape[0]
    on_outputs = scale.shape[0] == outputs if outputs > 1 else scale.size == 1
    return _decomposed(combined, scale, 0 if on_outputs else 1)


@oracle("dora_vector", "lora_magnitude_vector", sees="sum")
def _dora_vector(tensors: Arrays, combined: np.ndarray) -> np.ndarray:
    return _decomposed(combined, tensors["lora_magnitude_vector"], 0)
