"""What is stored as it is, beside an algorithm or alone: Full, Norm, sparse residuals, set weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._case import LAYERS, Case, Draw, alpha, samples


@samples("full")
def _full(draw: Draw) -> Iterator[Case]:
    for kind, shape in LAYERS.items():
        yield Case(kind, ("full",), {"diff": draw(*shape)}, shape)
        both = {"diff": draw(*shape), "diff_b": draw(shape[0])}
        yield Case(f"{kind}-bias", ("full",), both, shape, ("full_bias",))
    linear, conv = LAYERS["linear"], LAYERS["conv2d_3x3"]
    yield Case("alone", (), {"diff_b": draw(24)}, linear, ("full_bias",))
    yield Case("vector", ("full",), {"diff": draw(17)}, (17,))
    lora = {"lora_up.weight": draw(24, 4), "lora_down.weight": draw(4, 16), "alpha": alpha(2)}
    beside = {**lora, "diff": draw(*linear), "diff_b": draw(24)}
    yield Case("linear", ("lora", "full"), beside, linear, ("full_bias",))
    yield Case("linear", ("lora",), {**lora, "diff_b": draw(24)}, linear, ("full_bias",))
    plain = {"lora_up.weight": draw(24, 4), "lora_down.weight": draw(4, 16)}
    yield Case("linear", ("lora",), {**plain, "lora_B.bias": draw(24)}, linear, ("lora_bias",))
    lokr = {"lokr_w1": draw(4, 4), "lokr_w2_a": draw(3, 2), "lokr_w2_b": draw(2, 18), "alpha": alpha(1)}
    yield Case("conv2d_3x3", ("lokr", "full"), {**lokr, "diff": draw(*conv)}, conv)


@samples("norm")
def _norm(draw: Draw) -> Iterator[Case]:
    yield Case("weight", ("norm",), {"w_norm": draw(32)}, (32,))
    yield Case("both", ("norm",), {"w_norm": draw(32), "b_norm": draw(32)}, (32,), ("norm_bias",))
    yield Case("odd", ("norm",), {"w_norm": draw(7), "b_norm": draw(7)}, (7,), ("norm_bias",))


@samples("set")
def _set(draw: Draw) -> Iterator[Case]:
    for kind in ("linear", "conv2d_3x3", "conv1d_3"):
        shape = LAYERS[kind]
        yield Case(kind, ("set",), {"set_weight": draw(*shape)}, shape)
        both = {"set_weight": draw(*shape), "set_bias": draw(shape[0])}
        yield Case(f"{kind}-bias", ("set",), both, shape, ("set_bias",))
    yield Case("vector", ("set",), {"set_weight": draw(17)}, (17,))
    yield Case("alone", (), {"set_bias": draw(24)}, LAYERS["linear"], ("set_bias",))


@samples("sparse")
def _sparse(draw: Draw) -> Iterator[Case]:
    def residual(rows: int, columns: int, count: int, dtype: torch.dtype = torch.int16) -> dict[str, Tensor]:
        places = draw(rows * columns).argsort()[:count].sort().values
        return {
            "bias_indices": torch.stack((places // columns, places % columns)).to(dtype),
            "bias_values": draw(count),
            "bias_size": torch.tensor((rows, columns)).to(dtype),
        }

    linear, conv = LAYERS["linear"], LAYERS["conv2d_3x3"]
    yield Case("linear", ("sparse",), residual(24, 16, 30), linear)
    yield Case("conv2d_3x3", ("sparse",), residual(12, 72, 30), conv)
    yield Case("int64", ("sparse",), residual(24, 16, 30, torch.int64), linear)
    # Columns above 32767, and their number, come back from int16 as negative numbers.
    yield Case("wide", ("sparse",), residual(2, 40000, 50), (2, 40000))
    lora = {"lora_up.weight": draw(24, 4), "lora_down.weight": draw(4, 16), "alpha": alpha(2)}
    yield Case("linear", ("lora", "sparse"), {**lora, **residual(24, 16, 30)}, linear)
    # A Tucker kernel, whose residual stays what it is as long as nobody corrects it (network/corrections.py).
    tucker = {
        "lora_up.weight": draw(12, 3, 1, 1),
        "lora_down.weight": draw(3, 8, 1, 1),
        "lora_mid.weight": draw(3, 3, 3, 3),
    }
    every = {**tucker, "diff": draw(*conv), **residual(12, 72, 30), "diff_b": draw(12)}
    yield Case("conv2d_3x3", ("lora", "full", "sparse"), every, conv, ("full_bias",))
