"""Adapters as files store them, small and seeded: every algorithm × kind of layer × form that it comes in.

Raw tensors only; the library is not used. **A new algorithm** adds one decorated generator, and every law of
tests/unit/adapters then holds it (``oracles.py`` needs its formula as well):

    @samples("ia3")
    def _ia3(draw):
        for kind, shape in LAYERS.items():
            yield Case(f"{kind}-out", ("ia3",), {"weight": draw(shape[0]), "on_input": ...}, shape)

A layer of several components names all of them, in the order in which they are applied.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: The kinds of layer: the shape of a weight by name. The grouped convolution has 16 inputs in 4 groups.
LAYERS: dict[str, tuple[int, ...]] = {
    "linear": (24, 16),
    "linear_wide": (6, 30),
    "conv1d_3": (12, 8, 3),
    "conv2d_1x1": (16, 12, 1, 1),
    "conv2d_3x3": (12, 8, 3, 3),
    "conv3d_3": (6, 4, 3, 3, 3),
    "conv2d_3x3_grouped": (16, 4, 3, 3),
}

Draw = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """One layer of a file. ``algos`` change its weight, in this order; ``bias_algos`` its bias."""

    variant: str
    algos: tuple[str, ...]
    tensors: dict[str, Tensor]
    #: Shape of the layer's weight.
    shape: tuple[int, ...]
    bias_algos: tuple[str, ...] = ()
    #: Largest error of ΔW computed in float32 and in float64, as a share of max|ΔW|.
    tol32: float = 1e-5
    tol64: float = 1e-12
    #: "rows" or "columns" where a weight of any size on that side will do (an (IA)³, an OFT).
    free: str = ""

    @property
    def name(self) -> str:
        return f"{'+'.join((*self.algos, *self.bias_algos))}-{self.variant}"

    def stored(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors as a file saved in ``dtype`` holds them: trainers cast all that is no integer."""
        return {
            suffix: value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
            for suffix, value in self.tensors.items()
        }

    def targets(self) -> Iterator[Target]:
        """The parameters that it changes."""
        if self.algos:
            yield Target(self, "weight", self.algos, self.shape)
        if self.bias_algos:
            yield Target(self, "bias", self.bias_algos, self.shape[:1])


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter of a layer, and what changes it."""

    case: Case
    what: str
    algos: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.case.name if self.what == "weight" else f"{self.case.name}:bias"

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A base weight (or bias), the same each time, rounded to ``dtype``."""
        seed = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        return (torch.randn(self.shape, generator=seed, dtype=torch.float64) * 0.5).to(dtype)


#: Every case, in order of registration.
CASES: list[Case] = []


def samples(algo: str) -> Callable[[Callable[[Draw], Iterator[Case]]], None]:
    """Registers the cases that the decorated generator yields; it draws from one seed per ``algo``."""

    def register(generate: Callable[[Draw], Iterator[Case]]) -> None:
        seed = torch.Generator().manual_seed(zlib.crc32(algo.encode()))

        def draw(*shape: int, std: float = 0.3) -> Tensor:
            return torch.randn(shape, generator=seed) * std

        CASES.extend(generate(draw))

    return register


def targets() -> list[Target]:
    """Every parameter that some case changes."""
    return [target for case in CASES for target in case.targets()]


def kernel_size(shape: tuple[int, ...]) -> int:
    """∏k of a weight's shape; 1 for a Linear."""
    return int(torch.Size(shape[2:]).numel())


def alpha(value: float) -> Tensor:
    """An alpha as most trainers store it."""
    return torch.tensor(float(value))


def _has_kernel(shape: tuple[int, ...]) -> bool:
    return kernel_size(shape) > 1


# ---- LoRA ---------------------------------------------------------------------------------------------


@samples("lora")
def _lora(draw: Draw) -> Iterator[Case]:
    def factors(shape: tuple[int, ...], rank: int) -> dict[str, Tensor]:
        ones = (1,) * (len(shape) - 2)
        return {"lora_up.weight": draw(shape[0], rank, *ones), "lora_down.weight": draw(rank, *shape[1:])}

    for kind, shape in LAYERS.items():
        yield Case(kind, ("lora",), {**factors(shape, 4), "alpha": alpha(2)}, shape)
        if _has_kernel(shape):
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
        if kernel:  # as OneTrainer stores convolutions
            ones = (1,) * len(kernel)
            whole = halves((rows, 3, *ones), (3, inputs, *kernel))
            yield Case(f"{kind}-4d", ("loha",), {**whole, "alpha": alpha(2)}, shape)
        if _has_kernel(shape):
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
        if _has_kernel(shape):
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


# ---- parts --------------------------------------------------------------------------------------------


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
    lokr = {"lokr_w1": draw(4, 4), "lokr_w2_a": draw(3, 2), "lokr_w2_b": draw(2, 18), "alpha": alpha(1)}
    yield Case("conv2d_3x3", ("lokr", "full"), {**lokr, "diff": draw(*conv)}, conv)


@samples("norm")
def _norm(draw: Draw) -> Iterator[Case]:
    yield Case("weight", ("norm",), {"w_norm": draw(32)}, (32,))
    yield Case("both", ("norm",), {"w_norm": draw(32), "b_norm": draw(32)}, (32,), ("norm_bias",))
    yield Case("odd", ("norm",), {"w_norm": draw(7), "b_norm": draw(7)}, (7,), ("norm_bias",))
