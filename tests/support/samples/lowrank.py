"""Low-rank and Kronecker products: LoRA, LoHa, LoKr."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._case import LAYERS, Case, Draw, alpha, has_kernel, kernel_size, samples

# ---- LoRA ---------------------------------------------------------------------------------------------


@samples("lora")
def _lora(draw: Draw) -> Iterator[Case]:
    def factors(shape: tuple[int, ...], rank: int) -> dict[str, Tensor]:
        ones = (1,) * (len(shape) - 2)
        return {"lora_up.weight": draw(shape[0], rank, *ones), "lora_down.weight": draw(rank, *shape[1:])}

    for kind, shape in LAYERS.items():
        yield Case(kind, ("lora",), {**factors(shape, 4), "alpha": alpha(2)}, shape)
        if has_kernel(shape):
            ones = (1,) * (len(shape) - 2)
            tucker = {
                "lora_up.weight": draw(shape[0], 3, *ones),
                "lora_down.weight": draw(3, shape[1], *ones),
                "lora_mid.weight": draw(3, 3, *shape[2:]),
                "alpha": alpha(2),
            }
            yield Case(f"{kind}-tucker", ("lora",), tucker, shape)
    linear, conv = LAYERS["linear"], LAYERS["conv2d_3x3"]
    yield Case("no_alpha", ("lora",), factors(linear, 4), linear)
    yield Case("alpha_one_element", ("lora",), {**factors(linear, 4), "alpha": torch.tensor([3.0])}, linear)
    yield Case("alpha_int64", ("lora",), {**factors(linear, 4), "alpha": torch.tensor(8)}, linear)
    yield Case(
        "alpha_int64_one_element", ("lora",), {**factors(linear, 4), "alpha": torch.tensor([8])}, linear
    )
    yield Case("alpha_0", ("lora",), {**factors(linear, 4), "alpha": alpha(0)}, linear)
    yield Case("scale", ("lora",), {**factors(linear, 4), "alpha": alpha(2), "scale": alpha(0.75)}, linear)
    yield Case("rank_1", ("lora",), {**factors(linear, 1), "alpha": alpha(1)}, linear)
    yield Case("rank_over_size", ("lora",), {**factors(linear, 40), "alpha": alpha(20)}, linear)
    # A file trained on a 1×1 convolution that the model holds as a Linear.
    four = {"lora_up.weight": draw(24, 4, 1, 1), "lora_down.weight": draw(4, 16, 1, 1), "alpha": alpha(4)}
    yield Case("4d_on_linear", ("lora",), four, linear)
    # DyLoRA of convolutions stores a two-dimensional up.
    two = {"lora_up.weight": draw(12, 4), "lora_down.weight": draw(4, *conv[1:]), "alpha": alpha(4)}
    yield Case("2d_up_on_conv", ("lora",), two, conv)


# ---- LoHa ---------------------------------------------------------------------------------------------


@samples("loha")
def _loha(draw: Draw) -> Iterator[Case]:
    def halves(a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, Tensor]:
        return {
            "hada_w1_a": draw(*a),
            "hada_w1_b": draw(*b),
            "hada_w2_a": draw(*a),
            "hada_w2_b": draw(*b),
        }

    for kind, shape in LAYERS.items():
        rows, inputs, kernel = shape[0], shape[1], shape[2:]
        flat = halves((rows, 3), (3, inputs * kernel_size(shape)))
        yield Case(kind, ("loha",), {**flat, "alpha": alpha(2)}, shape)
        # A rank whose square is too large for a product of that rank to be the faster way.
        high = halves((rows, 7), (7, inputs * kernel_size(shape)))
        yield Case(f"{kind}-rank_7", ("loha",), {**high, "alpha": alpha(2)}, shape)
        if kernel:  # as OneTrainer stores convolutions
            ones = (1,) * len(kernel)
            whole = halves((rows, 3, *ones), (3, inputs, *kernel))
            yield Case(f"{kind}-4d", ("loha",), {**whole, "alpha": alpha(2)}, shape)
        if has_kernel(shape):
            tucker = halves((3, rows), (3, inputs))
            tucker |= {"hada_t1": draw(3, 3, *kernel), "hada_t2": draw(3, 3, *kernel)}
            yield Case(f"{kind}-tucker", ("loha",), {**tucker, "alpha": alpha(2)}, shape)
    linear = LAYERS["linear"]
    yield Case("no_alpha", ("loha",), halves((24, 3), (3, 16)), linear)
    yield Case("scale", ("loha",), {**halves((24, 3), (3, 16)), "scale": alpha(0.75)}, linear)
    # Tucker with r > o, where a rank read off hada_w1_a's second axis would be wrong without a crash.
    tucker = halves((8, 6), (8, 4)) | {"hada_t1": draw(8, 8, 3), "hada_t2": draw(8, 8, 3)}
    yield Case("tucker-rank_over_size", ("loha",), {**tucker, "alpha": alpha(2)}, (6, 4, 3))


# ---- LoKr ---------------------------------------------------------------------------------------------


@samples("lokr")
def _lokr(draw: Draw) -> Iterator[Case]:
    def first(o1: int, i1: int, rank: int | None = None) -> dict[str, Tensor]:
        if rank is None:
            return {"lokr_w1": draw(o1, i1)}
        return {"lokr_w1_a": draw(o1, rank), "lokr_w1_b": draw(rank, i1)}

    def second(shape: tuple[int, ...], o2: int, i2: int, rank: int | None = None) -> dict[str, Tensor]:
        if rank is None:
            return {"lokr_w2": draw(o2, i2, *shape[2:])}
        return {"lokr_w2_a": draw(o2, rank), "lokr_w2_b": draw(rank, i2 * kernel_size(shape))}

    def tucker(shape: tuple[int, ...], o2: int, i2: int, rank: int) -> dict[str, Tensor]:
        return {
            "lokr_w2_a": draw(rank, o2),
            "lokr_w2_b": draw(rank, i2),
            "lokr_t2": draw(rank, rank, *shape[2:]),
        }

    def case(variant: str, shape: tuple[int, ...], *factors: dict[str, Tensor], a: float = 1.0) -> Case:
        tensors = {suffix: value for factor in factors for suffix, value in factor.items()}
        return Case(variant, ("lokr",), {**tensors, "alpha": alpha(a)}, shape)

    for kind, shape in LAYERS.items():
        o1, i1 = (3 if shape[0] % 3 == 0 else 4), (5 if shape[1] % 5 == 0 else 4)
        o2, i2 = shape[0] // o1, shape[1] // i1
        yield case(kind, shape, first(o1, i1), second(shape, o2, i2, 2))
        yield case(f"{kind}-both_whole", shape, first(o1, i1), second(shape, o2, i2), a=7)
        yield case(f"{kind}-both_low_rank", shape, first(o1, i1, 2), second(shape, o2, i2, 2))
        yield case(f"{kind}-w1_low_rank", shape, first(o1, i1, 2), second(shape, o2, i2))
        if has_kernel(shape):
            yield case(f"{kind}-tucker", shape, first(o1, i1), tucker(shape, o2, i2, 2))
    linear, conv = LAYERS["linear"], LAYERS["conv2d_3x3"]
    # A w1 of very few elements, where a whole w2 would be nearly as large as the weight.
    yield case("factor_1", linear, first(1, 1), second(linear, 24, 16, 3))
    yield case("factor_2", linear, first(2, 2), second(linear, 12, 8, 3))
    yield case("factor_2-conv", conv, first(2, 2), second(conv, 6, 4, 3))
    yield case("factor_2-tucker", conv, first(2, 2), tucker(conv, 6, 4, 3))
    yield case("factor_2-tucker-both", conv, first(2, 2, 1), tucker(conv, 6, 4, 3))
    yield case("factor_1-high_rank", linear, first(1, 1), second(linear, 24, 16, 20))
    yield case("unbalanced", linear, first(12, 2), second(linear, 2, 8, 1))
    yield case("unbalanced_wide", linear, first(1, 8), second(linear, 24, 2))
    # Both ranks differ: s is that of w2.
    yield case("ranks_differ", linear, first(6, 4, 3), second(linear, 4, 4, 2))
    # Rows that no power of two divides.
    odd = (21, 10)
    yield case("odd", odd, first(3, 5), second(odd, 7, 2))
    yield case("odd-low_rank", odd, first(3, 2), second(odd, 7, 5, 2))
    no_alpha = {**first(4, 4), **second(linear, 6, 4, 2)}
    yield Case("no_alpha", ("lokr",), no_alpha, linear)
    yield Case("scale", ("lokr",), {**no_alpha, "alpha": alpha(1), "scale": alpha(0.75)}, linear)
    whole = {**first(4, 4), **second(linear, 6, 4), "alpha": alpha(7), "scale": alpha(0.75)}
    yield Case("scale-both_whole", ("lokr",), whole, linear)
