"""Hypothesis strategies: adapters of any small, odd and lopsided shape, as files store them.

An algorithm may have one decorated function that draws shapes and answers a ``samples.Case``; the numbers
come from a drawn seed, because shrinking single floats of a tensor finds nothing. Every other algorithm
gets one that is derived from its samples: any of them, with other numbers of the same signs, in any dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from samples import CASES, Case, kernel_size
from torch import Tensor

Drawer = Callable[[st.SearchStrategy[Any]], Any]
Build = Callable[[Drawer, Callable[..., Tensor]], Case]

#: One strategy of cases per algorithm.
STRATEGIES: dict[str, st.SearchStrategy[Case]] = {}

#: Kernels of Linear, Conv1d, Conv2d and Conv3d.
kernels = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
)
sizes = st.integers(1, 13)
#: Often above the size of a layer.
ranks = st.integers(1, 9)
alphas = st.sampled_from((None, 0.0, 1.0, 2.5, 16.0))
stored_dtypes = st.sampled_from((torch.float32, torch.float16, torch.bfloat16))
weight_dtypes = st.sampled_from((torch.float64, torch.float32, torch.bfloat16, torch.float16))
multipliers = st.sampled_from((1.0, -1.0, 0.3, 2.0)) | st.floats(-4, 4, width=32)


def strategy(algo: str) -> Callable[[Build], None]:
    """Registers the decorated function as the strategy of ``algo``."""

    def register(build: Build) -> None:
        @st.composite
        def cases(draw: Drawer) -> Case:
            seed = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
            dtype = draw(stored_dtypes)
            case = build(draw, lambda *shape: (torch.randn(shape, generator=seed) * 0.5).to(dtype))
            alpha = draw(alphas)
            if alpha is not None and "alpha" not in case.tensors and case.variant != "no_alpha":
                case.tensors["alpha"] = torch.tensor(alpha)
            return case

        STRATEGIES[algo] = cases()

    return register


def with_alpha(draw: Drawer, tensors: dict[str, Tensor], *choices: float) -> dict[str, Tensor]:
    """``tensors`` with one of ``choices`` as alpha, or none, where alpha is no scale."""
    alpha = draw(st.sampled_from((None, *choices)))
    return tensors if alpha is None else {**tensors, "alpha": torch.tensor(alpha)}


def any_case() -> st.SearchStrategy[Case]:
    """A case of any registered algorithm."""
    return st.one_of(*STRATEGIES.values())


@strategy("lora")
def _lora(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    o, i, r, kernel = draw(sizes), draw(sizes), draw(ranks), draw(kernels)
    ones = (1,) * len(kernel)
    tensors = {"lora_up.weight": randn(o, r, *ones)}
    if kernel and draw(st.booleans()):
        tensors |= {"lora_down.weight": randn(r, i, *ones), "lora_mid.weight": randn(r, r, *kernel)}
    else:
        tensors["lora_down.weight"] = randn(r, i, *kernel)
    return Case("", ("lora",), tensors, (o, i, *kernel))


@strategy("loha")
def _loha(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    o, i, kernel = draw(sizes), draw(sizes), draw(kernels)
    tucker = bool(kernel) and draw(st.booleans())
    shared = draw(ranks)
    tensors: dict[str, Tensor] = {}
    for half in (1, 2):
        r = shared
        if tucker:
            tensors[f"hada_w{half}_a"] = randn(r, o)
            tensors[f"hada_w{half}_b"] = randn(r, i)
            tensors[f"hada_t{half}"] = randn(r, r, *kernel)
        else:
            tensors[f"hada_w{half}_a"] = randn(o, r)
            tensors[f"hada_w{half}_b"] = randn(r, i * math.prod(kernel))
    return Case("", ("loha",), tensors, (o, i, *kernel))


@strategy("lokr")
def _lokr(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    small = st.integers(1, 5)
    o1, i1, o2, i2, kernel = draw(small), draw(small), draw(small), draw(small), draw(kernels)
    tensors: dict[str, Tensor] = {}
    if draw(st.booleans()):
        tensors["lokr_w1"] = randn(o1, i1)
    else:
        r = draw(ranks)
        tensors |= {"lokr_w1_a": randn(o1, r), "lokr_w1_b": randn(r, i1)}
    form = draw(st.sampled_from(("whole", "low-rank", "tucker") if kernel else ("whole", "low-rank")))
    r = draw(ranks)
    if form == "whole":
        tensors["lokr_w2"] = randn(o2, i2, *kernel)
    elif form == "low-rank":
        tensors |= {"lokr_w2_a": randn(o2, r), "lokr_w2_b": randn(r, i2 * math.prod(kernel))}
    else:
        tensors |= {"lokr_w2_a": randn(r, o2), "lokr_w2_b": randn(r, i2), "lokr_t2": randn(r, r, *kernel)}
    return Case("", ("lokr",), tensors, (o1 * o2, i1 * i2, *kernel))


def _dense(algo: str, key: str) -> None:
    def build(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
        shape = (draw(sizes), draw(sizes), *draw(kernels)) if algo == "full" else (draw(sizes),)
        return Case("no_alpha", (algo,), {key: randn(*shape)}, shape)

    strategy(algo)(build)


_dense("full", "diff")
_dense("norm", "w_norm")


# ---- what depends on the weight -----------------------------------------------------------------------


@strategy("glora")
def _glora(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    o, i, kernel = draw(sizes), draw(sizes), draw(kernels)
    r = draw(st.integers(1, i)) if o == i else draw(ranks)  # else a square one fits both orders
    ones = (1,) * len(kernel)
    if kernel and draw(st.booleans()):
        factors = [randn(i, r, *ones), randn(r, i, *ones), randn(o, r, *ones), randn(r, i, *ones)]
        tensors = {"bm.weight": randn(r, r, *kernel)}
    else:
        factors = [randn(i, r, *ones), randn(r, i, *ones), randn(o, r, *ones), randn(r, i, *kernel)]
        tensors = {}
    if math.prod(kernel) == 1 and not tensors and r < i and draw(st.booleans()):
        factors = [factors[index] for index in (1, 0, 3, 2)]
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    return Case("", ("glora",), {**dict(zip(names, factors, strict=True)), **tensors}, (o, i, *kernel))


@strategy("glokr")
def _glokr(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    small = st.integers(1, 4)
    o1, i1, o2, i2, kernel, r = (
        draw(small),
        draw(small),
        draw(small),
        draw(small),
        draw(kernels),
        draw(ranks),
    )
    tensors: dict[str, Tensor] = {}

    def factor(name: str, rows: int, columns: int, *more: int) -> None:
        if draw(st.booleans()):
            tensors[f"glokr_{name}"] = randn(rows, columns, *more)
        else:
            tensors[f"glokr_{name}_a"] = randn(rows, r)
            tensors[f"glokr_{name}_b"] = randn(r, columns * math.prod(more))

    p, q = (i1, i2) if draw(st.booleans()) else (i2, i1)
    factor("a_w1", p, p)
    factor("a_w2", q, q)
    factor("b_w1", o1, i1)
    if kernel and draw(st.booleans()):
        tensors |= {"glokr_b_w2_a": randn(r, o2), "glokr_b_w2_b": randn(r, i2)}
        tensors["glokr_b_t2"] = randn(r, r, *kernel)
    else:
        factor("b_w2", o2, i2, *kernel)
    return Case("", ("glokr",), tensors, (o1 * o2, i1 * i2, *kernel))


@strategy("ia3")
def _ia3(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    shape = (draw(sizes), draw(sizes), *draw(kernels))
    on_input = draw(st.booleans())
    channels = shape[1] if on_input else shape[0]
    vector = randn(1, channels, *(1,) * (len(shape) - 2)) if len(shape) > 2 else randn(channels)
    return Case("no_alpha", ("ia3",), {"weight": vector, "on_input": torch.tensor(float(on_input))}, shape)


@strategy("ia3_peft")
def _ia3_peft(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    o, i = draw(st.integers(2, 13)), draw(st.integers(2, 13))
    if draw(st.booleans()):
        return Case("no_alpha", ("ia3_peft",), {"ia3_l": randn(1, i)}, (o, i))
    return Case("no_alpha", ("ia3_peft",), {"ia3_l": randn(o, 1)}, (o, i), ("ia3_peft_bias",))


@strategy("tlora")
def _tlora(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    """Any P, Q and λ that started from the case's own weight."""
    kernel = draw(st.sampled_from(((), (1,), (1, 1))))
    shape = (draw(sizes), draw(sizes), *kernel)
    unscaled = Case("no_alpha", ("tlora",), {}, shape)
    weight = next(unscaled.targets()).weight(torch.float64).flatten(1)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    # Cut where the singular values leave a gap, by which the error of the best approximation is divided.
    gaps = (s - torch.cat((s[1:], s.new_zeros(1)))) / s[0]
    r = draw(st.sampled_from([rank + 1 for rank, gap in enumerate(gaps) if gap > 0.02]))
    dtype = randn(1).dtype
    tensors = {
        "q_layer.weight": vh[:r].to(dtype).reshape(r, shape[1], *kernel) + 0.1 * randn(r, shape[1], *kernel),
        "p_layer.weight": u[:, :r].to(dtype).reshape(-1, r, *kernel) + 0.1 * randn(shape[0], r, *kernel),
        "lambda_layer": (s[:r].to(dtype) * (1 + 0.5 * randn(r))).reshape(1, r),
    }
    tensors = with_alpha(draw, tensors, 0.0, 1.0, 2.5, 16.0)
    # ΔW is the difference of two products as large as W, and may be small.
    return Case("no_alpha", ("tlora",), tensors, shape, tol32=1e-3, tol64=1e-10)


# ---- what turns ---------------------------------------------------------------------------------------


def _turning(case: Case, blocks: Tensor, bound: float | None = None) -> Case:
    """``case`` with the error of a rotation: that of R, which is about 1, as a share of R − I."""
    turn = float((blocks.double() - blocks.double().mT).norm())
    turn = max(turn if not bound else min(turn, bound), 1e-9)
    return replace(case, tol32=1e-5 + 5e-6 / turn, tol64=1e-12 + 1e-14 / turn)


def _constrained(
    algo: str, draw: Drawer, randn: Callable[..., Tensor], blocks: Tensor, shape: tuple[int, ...]
) -> Case:
    tensors = with_alpha(draw, {"oft_blocks": blocks}, 0.0, 0.02, 0.3, 16.0)
    if draw(st.booleans()):
        ones = draw(st.sampled_from(((), (1,) * (len(shape) - 1))))
        tensors["rescale"] = 1 + randn(shape[0], *ones)
    bound = float(tensors["alpha"]) * shape[0] if "alpha" in tensors else None
    return _turning(Case("no_alpha", (algo,), tensors, shape), blocks, bound)


@strategy("oft")
def _oft(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    n, b = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return _constrained(
        "oft", draw, randn, randn(n, b, b), (n * b, *draw(st.sampled_from(((), (3,), (2, 2)))))
    )


@strategy("oft_diag")
def _oft_diag(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    n, b = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    shape = (n * b, draw(sizes), *draw(kernels))
    return Case("no_alpha", ("oft_diag",), {"oft_diag": randn(n, b, b)}, shape, tol32=1e-4)


@strategy("oft_split")
def _oft_split(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    parts = [(draw(st.integers(1, 4)), draw(st.integers(2, 4))) for _ in range(draw(st.integers(2, 4)))]
    tensors = {f"oft_blocks.{part}": randn(n, b, b) for part, (n, b) in enumerate(parts)}
    tensors = with_alpha(draw, tensors, 0.0, 0.1, 16.0)
    shape = (sum(n * b for n, b in parts), draw(sizes), *draw(kernels))
    return Case("no_alpha", ("oft_split",), tensors, shape, tol32=1e-4)


def _stages(draw: Drawer, randn: Callable[..., Tensor]) -> Tensor:
    n, b = 2 ** draw(st.integers(0, 3)), 2 * draw(st.integers(1, 3))
    return randn(n.bit_length(), n, b, b)


@strategy("boft")
def _boft(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    blocks = _stages(draw, randn)
    outputs = blocks.shape[1] * blocks.shape[2]
    return _constrained("boft", draw, randn, blocks, (outputs, draw(sizes), *draw(kernels)))


@strategy("boft_diag")
def _boft_diag(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    blocks = _stages(draw, randn)
    outputs = blocks.shape[1] * blocks.shape[2]
    tensors = {"oft_diag": blocks}
    if draw(st.booleans()):
        tensors["rescale"] = randn(outputs)
    return Case("no_alpha", ("boft_diag",), tensors, (outputs, draw(sizes), *draw(kernels)), tol32=1e-4)


@strategy("oft_v2")
def _oft_v2(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    b, kernel = draw(st.integers(2, 5)), draw(kernels)
    shape = (draw(sizes), b * draw(st.integers(1, 4)), *kernel)
    blocks = 1 if draw(st.booleans()) else shape[1] * kernel_size(shape) // b
    tensors = {"oft_R.weight": randn(blocks, b * (b - 1) // 2)}
    if draw(st.booleans()):
        tensors["oft_R.scaled_oft"] = torch.tensor(float(draw(st.booleans())))
    if kernel_size(shape) == 1 and draw(st.booleans()):
        tensors["oft_R.peft"] = torch.tensor(float(draw(st.integers(1, 3))))
    return Case("no_alpha", ("oft_v2",), tensors, shape, tol32=1e-4, tol64=1e-11)


@strategy("boft_inputs")
def _boft_inputs(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    blocks, kernel = _stages(draw, randn), draw(kernels)
    columns = blocks.shape[1] * blocks.shape[2]
    outputs, inputs = draw(sizes), columns
    if columns % torch.Size(kernel).numel() == 0:
        inputs //= torch.Size(kernel).numel()
    else:
        kernel = ()
    tensors = {"boft_R": blocks, "boft_s": randn(outputs, 1)}
    return Case("no_alpha", ("boft_inputs",), tensors, (outputs, inputs, *kernel), tol32=1e-4)


# ---- parts and modifiers ------------------------------------------------------------------------------


@strategy("set")
def _set(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    shape = (draw(sizes), draw(sizes), *draw(kernels))
    return Case("no_alpha", ("set",), {"set_weight": randn(*shape)}, shape)


@strategy("sparse")
def _sparse(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
    shape = (draw(sizes), draw(sizes), *draw(kernels))
    rows, columns = shape[0], shape[1] * kernel_size(shape)
    # The same place twice is legal: both values count.
    places = st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1))
    chosen = draw(st.lists(places, min_size=1, max_size=20))
    tensors = {
        "bias_indices": torch.tensor(chosen).T.contiguous().to(draw(st.sampled_from(_INDICES))),
        "bias_values": randn(len(chosen)),
        "bias_size": torch.tensor((rows, columns), dtype=torch.int16),
    }
    return Case("no_alpha", ("sparse",), tensors, shape)


_INDICES = (torch.int16, torch.int32, torch.int64)


def _decomposed(algo: str, key: str) -> None:
    def build(draw: Drawer, randn: Callable[..., Tensor]) -> Case:
        # From four channels on, so that no norm comes near 0, where its error is magnified.
        o, i, r, kernel = draw(st.integers(4, 13)), draw(st.integers(4, 13)), draw(ranks), draw(kernels)
        tensors = {"lora_up.weight": randn(o, r), "lora_down.weight": randn(r, i, *kernel)}
        axis = draw(st.sampled_from((0, 1))) if algo == "dora" else 0
        sizes_of_d = [o, *(1,) * (1 + len(kernel))] if axis == 0 else [1, i, *(1,) * len(kernel)]
        tensors[key] = 0.5 + randn(*(sizes_of_d if algo == "dora" else (o,))).abs()
        return Case("", ("lora", algo), tensors, (o, i, *kernel), tol32=1e-4, tol64=1e-11)

    strategy(algo)(build)


_decomposed("dora", "dora_scale")
_decomposed("dora_vector", "lora_magnitude_vector")


# ---- derived from samples -----------------------------------------------------------------------------


def _derived(algo: str) -> st.SearchStrategy[Case]:
    own = [case for case in CASES if case.algos and case.algos[0] == algo]

    @st.composite
    def cases(draw: Drawer) -> Case:
        case = draw(st.sampled_from(own))
        seed = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        dtype = draw(stored_dtypes)

        def varied(value: Tensor) -> Tensor:
            if value.numel() < 2 or not value.is_floating_point():
                return value.clone()
            return (value * (0.5 + torch.rand(value.shape, generator=seed))).to(dtype)

        tensors = {suffix: varied(value) for suffix, value in case.tensors.items()}
        return replace(case, variant="derived", tensors=tensors, tol32=1e-4, tol64=1e-11)

    return cases()


for _algo in dict.fromkeys(case.algos[0] for case in CASES if case.algos):
    if _algo not in STRATEGIES:
        STRATEGIES[_algo] = _derived(_algo)
