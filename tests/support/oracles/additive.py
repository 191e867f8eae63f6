"""What is added whatever the weight is: LoRA, LoHa, LoKr, and the parts that are stored as they are."""

from __future__ import annotations

import numpy as np

from ._maths import matrix, ratio, tucker, two_factors
from ._registry import Arrays, oracle


@oracle("lora", "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "scale")
def _lora(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    up, down = tensors["lora_up.weight"], tensors["lora_down.weight"]
    if "lora_mid.weight" in tensors:
        change = tucker(tensors["lora_mid.weight"], matrix(up), matrix(down))
    else:
        change = two_factors(up, down)
    return ratio(tensors, down.shape[0]) * change.reshape(weight.shape)


@oracle(
    "loha",
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    *("hada_t1", "hada_t2", "alpha", "scale"),
)
def _loha(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    def half(n: int) -> np.ndarray:
        a, b = tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"]
        if f"hada_t{n}" in tensors:
            return tucker(tensors[f"hada_t{n}"], a.T, b)  # w_a is stored (r, o)
        return two_factors(a, b).reshape(weight.shape)

    return ratio(tensors, tensors["hada_w1_b"].shape[0]) * half(1) * half(2)


@oracle(
    "lokr",
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
    *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "scale"),
)
def _lokr(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    kernel = weight.shape[2:]
    # Where both factors are whole trainers ignore alpha, but A1111 does not ignore its scale.
    s = float(tensors["scale"].reshape(())) if "scale" in tensors else 1.0
    if "lokr_w1" in tensors:
        w1 = matrix(tensors["lokr_w1"])
    else:
        w1 = two_factors(tensors["lokr_w1_a"], tensors["lokr_w1_b"])
        s = ratio(tensors, tensors["lokr_w1_b"].shape[0])
    if "lokr_w2" in tensors:
        w2 = tensors["lokr_w2"]
    else:
        s = ratio(tensors, tensors["lokr_w2_b"].shape[0])  # once, even if w1 is low-rank too
        if "lokr_t2" in tensors:
            w2 = tucker(tensors["lokr_t2"], tensors["lokr_w2_a"].T, tensors["lokr_w2_b"])
        else:
            w2 = two_factors(tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    inputs = w2[0].size // int(np.prod(kernel))
    w2 = w2.reshape(w2.shape[0], inputs, *kernel)
    # The product by its definition, on the axes of a convolution: every element of w1 times all of w2.
    product = np.einsum("pq,rs...->prqs...", w1, w2)
    return s * product.reshape(weight.shape)


def _stored(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    (change,) = tensors.values()
    return change.reshape(weight.shape)


for _algo, _key in (
    ("full", "diff"),
    ("full_bias", "diff_b"),
    ("lora_bias", "lora_B.bias"),  # beside a LoRA without alpha
    ("norm", "w_norm"),
    ("norm_bias", "b_norm"),
):
    oracle(_algo, _key)(_stored)


@oracle("sparse", "bias_indices", "bias_values", "bias_size")
def _sparse(tensors: Arrays, weight: np.ndarray) -> np.ndarray:
    def unsigned(value: float) -> int:
        return int(value) + (65536 if value < 0 else 0)  # stored as int16, which ends at 32767

    total = np.zeros([unsigned(size) for size in tensors["bias_size"].ravel()])
    for row, column, value in zip(*tensors["bias_indices"], tensors["bias_values"].ravel(), strict=True):
        total[unsigned(row), unsigned(column)] += value
    return total.reshape(weight.shape)
