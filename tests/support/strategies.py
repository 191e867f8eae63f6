"""Hypothesis strategies: adapters of any small, odd and lopsided shape, as files store them.

**A new algorithm** adds one decorated function that draws shapes and answers a ``samples.Case``; the numbers
come from a drawn seed, because shrinking single floats of a tensor finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from samples import Case
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
