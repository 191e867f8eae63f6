"""What turns the outputs or the inputs of a layer: OFT in its forms, and BOFT."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._case import LAYERS, Case, Draw, alpha, kernel_size, same_outputs, samples


def _turned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The finished rotations of ``oft_blocks``, as LyCORIS 2.0 stored them."""
    skew = tensors["oft_blocks"].double() - tensors["oft_blocks"].double().mT
    one = torch.eye(skew.shape[-1], dtype=torch.float64)
    return {"oft_diag": ((one + skew) @ torch.linalg.inv(one - skew)).float()}


@samples("oft_diag")
def _oft_diag(draw: Draw) -> Iterator[Case]:
    for kind, size in (("linear", 4), ("conv2d_3x3", 3), ("conv2d_3x3_grouped", 8)):
        shape = LAYERS[kind]
        tensors = _turned({"oft_blocks": draw(shape[0] // size, size, size)})
        yield Case(kind, ("oft_diag",), tensors, shape, also_fits=same_outputs(shape[0]))
    # With a rescaling, which stands in the columns of R.
    tensors = _turned({"oft_blocks": draw(2, 12, 12)})
    tensors["oft_diag"] *= 1 + draw(2, 1, 12)
    yield Case("rescaled", ("oft_diag",), tensors, LAYERS["linear"], also_fits=same_outputs(24))


@samples("oft")
def _oft(draw: Draw) -> Iterator[Case]:
    def case(variant: str, shape: tuple[int, ...], size: int, **more: Tensor) -> Case:
        tensors = {"oft_blocks": draw(shape[0] // size, size, size), **more}
        return Case(variant, ("oft",), tensors, shape, also_fits=same_outputs(shape[0]))

    for kind, size in (("linear", 4), ("linear_wide", 6), ("conv1d_3", 4), ("conv2d_1x1", 2)):
        yield case(kind, LAYERS[kind], size, alpha=alpha(0))
    yield case("conv2d_1x1_grouped", LAYERS["conv2d_1x1_grouped"], 8, alpha=alpha(0))
    linear, conv = LAYERS["linear"], LAYERS["conv2d_3x3"]
    # All blocks together are far above 0.05·24 and far below 2·24.
    yield case("constraint", linear, 4, alpha=alpha(0.05))
    yield case("constraint-inactive", linear, 4, alpha=alpha(2))
    yield case("rescale", linear, 8, rescale=1 + draw(24, 1), alpha=alpha(0))
    yield case("rescale-conv", conv, 4, rescale=1 + draw(12, 1, 1, 1), alpha=alpha(0.1))
    # LyCORIS 2.1 stored no alpha, and a vector.
    yield case("rescale-vector", LAYERS["conv3d_3"], 3, rescale=1 + draw(6))


@samples("oft_split")
def _oft_split(draw: Draw) -> Iterator[Case]:
    def case(variant: str, columns: tuple[int, ...], *parts: tuple[int, int], a: float | None = 0.1) -> Case:
        tensors = {f"oft_blocks.{part}": draw(n, b, b) for part, (n, b) in enumerate(parts)}
        if a is not None:
            tensors["alpha"] = alpha(a)
        outputs = sum(n * b for n, b in parts)
        fits = same_outputs(outputs)
        return Case(variant, ("oft_split",), tensors, (outputs, *columns), also_fits=fits)

    yield case("qkv", (16,), (2, 4), (2, 4), (2, 4))
    # Each part has a bound of its own, above the norms of two of them and below those of the others.
    yield case("linear1", (10,), (2, 4), (2, 4), (2, 4), (1, 12), a=0.27)
    yield case("two", (16,), (4, 2), (1, 6), a=0)
    yield case("conv-no_alpha", (4, 3, 3), (2, 3), (3, 2), a=None)
    yield case("conv-grouped", (4, 1, 1), (2, 4), (4, 2))


@samples("boft_diag")
def _boft_diag(draw: Draw) -> Iterator[Case]:
    for kind, blocks, size in (("linear", 4, 6), ("conv2d_3x3", 2, 6), ("conv2d_1x1", 8, 2)):
        shape, stages = LAYERS[kind], blocks.bit_length()
        tensors = _turned({"oft_blocks": draw(stages, blocks, size, size)})
        if kind != "linear":
            tensors["rescale"] = 1 + draw(shape[0], *(1,) * (len(shape) - 1))
        yield Case(kind, ("boft_diag",), tensors, shape, also_fits=same_outputs(shape[0]))


@samples("boft")
def _boft(draw: Draw) -> Iterator[Case]:
    def case(variant: str, shape: tuple[int, ...], blocks: int, **more: Tensor) -> Case:
        stages, size = blocks.bit_length(), shape[0] // blocks
        tensors = {"oft_blocks": draw(stages, blocks, size, size), **more}
        return Case(variant, ("boft",), tensors, shape, also_fits=same_outputs(shape[0]))

    yield case("linear", LAYERS["linear"], 4, alpha=alpha(0))
    yield case("conv3d_3-one_block", LAYERS["conv3d_3"], 1, alpha=alpha(0))
    yield case("conv1d_3-no_alpha", LAYERS["conv1d_3"], 2)
    yield case("conv2d_1x1_grouped", LAYERS["conv2d_1x1_grouped"], 4)
    yield case("constraint", LAYERS["conv2d_1x1"], 4, alpha=alpha(0.1))
    yield case("constraint-inactive", LAYERS["conv2d_1x1"], 8, alpha=alpha(3))
    yield case("rescale", LAYERS["linear"], 2, rescale=1 + draw(24, 1), alpha=alpha(0))
    yield case("rescale-conv", LAYERS["conv2d_3x3"], 2, rescale=1 + draw(12, 1, 1, 1), alpha=alpha(0.2))
    yield case("rescale-vector", LAYERS["linear"], 4, rescale=1 + draw(24))


@samples("oft_v2")
def _oft_v2(draw: Draw) -> Iterator[Case]:
    def case(variant: str, shape: tuple[int, ...], size: int, *, share: bool = False, **more: Tensor) -> Case:
        columns = shape[1] * kernel_size(shape)
        tensors = {"oft_R.weight": draw(1 if share else columns // size, size * (size - 1) // 2), **more}

        def also_fits(other: tuple[int, ...]) -> bool:
            found = torch.Size(other[1:]).numel()
            return len(other) > 1 and (found % size == 0 if share else found == columns)

        return Case(variant, ("oft_v2",), tensors, shape, also_fits=also_fits)

    yield case("linear", LAYERS["linear"], 4)
    yield case("linear-share", LAYERS["linear"], 8, share=True)
    yield case("conv2d_3x3", LAYERS["conv2d_3x3"], 6)
    yield case("conv1d_3-share", LAYERS["conv1d_3"], 4, share=True)
    # OneTrainer's flag; whatever its value is, it is stored as a number.
    yield case("scaled", LAYERS["linear_wide"], 5, **{"oft_R.scaled_oft": torch.tensor(1.0)})
    yield case("scaled-conv", LAYERS["conv2d_1x1"], 3, **{"oft_R.scaled_oft": torch.tensor(True)})
    yield case("scaled-off", LAYERS["linear"], 2, **{"oft_R.scaled_oft": torch.tensor(0.0)})
    # What this library stores of PEFT's configuration: the series, the exact transform.
    yield case("peft-conv2d_1x1", LAYERS["conv2d_1x1"], 3, **{"oft_R.peft": torch.tensor(1.0)})
    yield case("conv2d_1x1_grouped", LAYERS["conv2d_1x1_grouped"], 2)
    yield case("peft-old", LAYERS["linear"], 4, **{"oft_R.peft": torch.tensor(3.0)})
    yield case("peft-exact", LAYERS["linear"], 4, **{"oft_R.peft": torch.tensor(2.0)})


@samples("boft_inputs")
def _boft_inputs(draw: Draw) -> Iterator[Case]:
    for kind, stages, size in (
        ("linear", 3, 4),
        ("linear_wide", 1, 5),
        ("conv2d_3x3", 2, 6),
        ("conv2d_1x1", 1, 2),
        ("conv2d_1x1_grouped", 2, 2),
    ):
        shape = LAYERS[kind]
        columns = shape[1] * kernel_size(shape)
        scales = (shape[0], 1) if len(shape) == 2 else (1, shape[0])
        tensors = {"boft_R": draw(stages, columns // size, size, size), "boft_s": 1 + draw(*scales)}

        def also_fits(other: tuple[int, ...], shape: tuple[int, ...] = shape, columns: int = columns) -> bool:
            return len(other) > 0 and other[0] == shape[0] and torch.Size(other[1:]).numel() == columns

        yield Case(kind, ("boft_inputs",), tensors, shape, also_fits=also_fits)
