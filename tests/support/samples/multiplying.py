"""What depends on the weight: GLoRA, GLoKr, (IA)³ and T-LoRA."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._case import LAYERS, Case, Draw, alpha, same_inputs, same_outputs, samples

_ORDER = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")


@samples("glora")
def _glora(draw: Draw) -> Iterator[Case]:
    def factors(shape: tuple[int, ...], rank: int) -> dict[str, Tensor]:
        o, i, *kernel = shape
        ones = (1,) * len(kernel)
        found = (draw(i, rank, *ones), draw(rank, i, *ones), draw(o, rank, *ones), draw(rank, i, *kernel))
        return dict(zip(_ORDER, found, strict=True))

    def older(shape: tuple[int, ...], rank: int) -> dict[str, Tensor]:
        a1, a2, b1, b2 = factors(shape, rank).values()
        return dict(zip(_ORDER, (a2, a1, b2, b1), strict=True))

    for kind, shape in LAYERS.items():
        yield Case(kind, ("glora",), {**factors(shape, 3), "alpha": alpha(2)}, shape)
    for shape in ((24, 16), (16, 16), (16, 12, 1, 1)):
        name = "old_order-" + "x".join(map(str, shape))
        yield Case(name, ("glora",), {**older(shape, 3), "alpha": alpha(2)}, shape)
    yield Case("square", ("glora",), {**factors((16, 16), 3), "alpha": alpha(2)}, (16, 16))
    # Both orders fit: the newer one is meant.
    yield Case("square-rank_of_size", ("glora",), {**factors((8, 8), 8), "alpha": alpha(2)}, (8, 8))
    yield Case("rank_over_size", ("glora",), {**factors((10, 6), 12), "alpha": alpha(2)}, (10, 6))
    yield Case("no_alpha", ("glora",), factors((24, 16), 3), (24, 16))
    # No program ever wrote this one, though LyCORIS has the code.
    shape = LAYERS["conv2d_3x3"]
    tucker = {**factors((*shape[:2], 1, 1), 3), "bm.weight": draw(3, 3, *shape[2:]), "alpha": alpha(2)}
    yield Case("conv2d_3x3-tucker", ("glora",), tucker, shape)


@samples("glokr")
def _glokr(draw: Draw) -> Iterator[Case]:
    def pair(name: str, rows: int, columns: int, rank: int | None = None) -> dict[str, Tensor]:
        if rank is None:
            return {f"glokr_{name}": draw(rows, columns)}
        return {f"glokr_{name}_a": draw(rows, rank), f"glokr_{name}_b": draw(rank, columns)}

    linear, conv = LAYERS["linear"], LAYERS["conv2d_3x3"]
    low = {
        **pair("a_w1", 4, 4),
        **pair("a_w2", 4, 4, 2),
        **pair("b_w1", 4, 4),
        **pair("b_w2", 6, 4, 2),
        "alpha": alpha(1),
    }
    yield Case("linear", ("glokr",), low, linear)
    every = {
        **pair("a_w1", 2, 2, 2),
        **pair("a_w2", 8, 8, 2),
        **pair("b_w1", 3, 8, 2),
        **pair("b_w2", 8, 2, 2),
        "alpha": alpha(3),
    }
    yield Case("linear-all_low_rank", ("glokr",), every, linear)
    whole = {**pair("a_w1", 2, 2), **pair("a_w2", 8, 8), **pair("b_w1", 4, 2), **pair("b_w2", 6, 8)}
    yield Case("linear-all_whole", ("glokr",), {**whole, "alpha": alpha(7)}, linear)
    # The rank is A's where B has none.
    from_a = {**pair("a_w1", 4, 4), **pair("a_w2", 2, 2, 1), **pair("b_w1", 3, 2)}
    from_a |= {"glokr_b_w2": draw(4, 4, 3, 3), "alpha": alpha(2)}
    yield Case("conv2d_3x3", ("glokr",), from_a, conv)
    tucker = {**pair("a_w1", 2, 2), **pair("a_w2", 4, 4), **pair("b_w1", 2, 2)}
    tucker |= {"glokr_b_w2_a": draw(2, 6), "glokr_b_w2_b": draw(2, 4), "glokr_b_t2": draw(2, 2, 3, 3)}
    yield Case("conv2d_3x3-tucker", ("glokr",), {**tucker, "alpha": alpha(1)}, conv)
    grouped = {**pair("a_w1", 2, 2), **pair("a_w2", 2, 2), **pair("b_w1", 4, 2), **pair("b_w2", 4, 2)}
    yield Case("conv2d_1x1_grouped", ("glokr",), grouped, LAYERS["conv2d_1x1_grouped"])
    # On a convolution of one dimension; A and B cut the inputs in different ways.
    flat = {**pair("a_w1", 2, 2), **pair("a_w2", 4, 4), **pair("b_w1", 3, 4, 2), **pair("b_w2", 4, 2 * 3, 2)}
    yield Case("no_alpha-conv1d_3", ("glokr",), flat, LAYERS["conv1d_3"])


@samples("ia3")
def _ia3(draw: Draw) -> Iterator[Case]:
    #: Trainers cast on_input with everything else, or do not.
    stored = {
        "linear": torch.tensor(1),
        "linear_wide": torch.tensor(True),
        "conv1d_3": torch.tensor([1.0]).half(),
        "conv2d_3x3": torch.tensor(1.0).bfloat16(),
        "conv3d_3": torch.tensor(1.0),
        "conv2d_1x1_grouped": torch.tensor(1.0),
    }
    for kind, on_input in stored.items():
        shape = LAYERS[kind]
        ones = (1,) * (len(shape) - 2)
        for axis, side in enumerate(("output", "input")):
            vector = draw(1, shape[axis], *ones) if ones else draw(shape[axis])
            tensors = {"weight": vector, "on_input": on_input if axis else torch.zeros_like(on_input)}
            also_fits = same_inputs(shape[1]) if axis else same_outputs(shape[0])
            yield Case(f"{kind}-{side}", ("ia3",), tensors, shape, also_fits=also_fits)


@samples("ia3_peft")
def _ia3_peft(draw: Draw) -> Iterator[Case]:
    for kind in ("linear", "linear_wide"):
        o, i = shape = LAYERS[kind]
        outputs, inputs = {"ia3_l": 1 + draw(o, 1)}, {"ia3_l": 1 + draw(1, i)}
        bias = ("ia3_peft_bias",)
        yield Case(f"{kind}-output", ("ia3_peft",), outputs, shape, bias, also_fits=same_outputs(o))
        # PEFT has it for Linear layers only, so it is every column that has a factor.
        every_column = lambda shape, i=i: torch.Size(shape[1:]).numel() == i and len(shape) > 1  # noqa: E731
        yield Case(f"{kind}-input", ("ia3_peft",), inputs, shape, also_fits=every_column)


@samples("tlora")
def _tlora(draw: Draw) -> Iterator[Case]:
    def case(variant: str, shape: tuple[int, ...], rank: int, a: float | None = 2.0) -> Case:
        """As trained from the case's own weight: P, Q and λ not far from where they started."""
        # The r-th best approximation of W moves by W's own error times σ_1/(σ_r − σ_r+1), 30 or so here.
        found = Case(variant, ("tlora",), {}, shape, tol32=5e-5, tol64=5e-12)
        weight = next(found.targets()).weight(torch.float64).flatten(1)
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        ones = (1,) * (len(shape) - 2)
        p = (u[:, :rank].float() + draw(shape[0], rank, std=0.05)).contiguous()
        q = (vh[:rank].float() + draw(rank, weight.shape[1], std=0.05)).contiguous()
        found.tensors.update(
            {
                "q_layer.weight": q.reshape(rank, weight.shape[1], *ones),
                "p_layer.weight": p.reshape(shape[0], rank, *ones),
                "lambda_layer": (s[:rank].float() * (1 + draw(rank, std=0.2))).reshape(1, rank),
            }
        )
        if a is not None:
            found.tensors["alpha"] = alpha(a)
        return found

    yield case("linear", LAYERS["linear"], 4)
    known = ("q_layer.weight", "p_layer.weight", "lambda_layer")
    for kind, shape, sizes in (
        ("linear", LAYERS["linear"], [(4, LAYERS["linear"][1]), (LAYERS["linear"][0], 4), (1, 4)]),
        (
            "conv2d_3x3",
            LAYERS["conv2d_3x3"],
            [(3, *LAYERS["conv2d_3x3"][1:]), (LAYERS["conv2d_3x3"][0], 3, 1, 1), (1, 3)],
        ),
    ):
        tensors = {key: draw(*size) for key, size in zip(known, sizes, strict=True)}
        starts = {
            key: draw(*size) for key, size in zip(("base_q", "base_p", "base_lambda"), sizes, strict=True)
        }
        yield Case(f"{kind}-known_start", ("tlora",), {**tensors, **starts, "alpha": alpha(2.0)}, shape)
    yield case("linear_wide", LAYERS["linear_wide"], 2)
    yield case("conv2d_1x1", LAYERS["conv2d_1x1"], 3)
    yield case("rank_1", LAYERS["linear"], 1)
    yield case("rank_of_size", (10, 6), 6)
    yield case("no_alpha", LAYERS["linear"], 4, None)
