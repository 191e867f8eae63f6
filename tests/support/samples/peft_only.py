"""What only PEFT trains: HRA and MiSS."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ._case import LAYERS, Case, Draw, kernel_size, samples
from ._peft import peft

LINEAR = ("linear", "square")


def _same_columns(columns: int) -> Callable[[tuple[int, ...]], bool]:
    return lambda shape: len(shape) > 0 and torch.Size(shape[1:]).numel() == columns


@samples("hra")
def _hra(draw: Draw) -> Iterator[Case]:
    for kind in ("linear", "linear_wide", "conv1d_3", "conv2d_1x1", "conv2d_3x3", "conv2d_1x1_grouped"):
        shape = LAYERS[kind]
        columns = shape[1] * kernel_size(shape)
        yield Case(kind, ("hra",), {"hra_u": draw(columns, 4)}, shape, also_fits=_same_columns(columns))
    yield Case("one", ("hra",), {"hra_u": draw(16, 1)}, LAYERS["linear"], also_fits=_same_columns(16))
    many = {"hra_u": draw(16, 20)}
    yield Case("more_than_inputs", ("hra",), many, LAYERS["linear"], also_fits=_same_columns(16))
    # As PEFT starts: every vector twice, which undo each other; here nearly.
    pairs = draw(16, 3).repeat_interleave(2, dim=1) + draw(16, 6, std=0.05)
    yield Case("pairs", ("hra",), {"hra_u": pairs}, LAYERS["linear"], also_fits=_same_columns(16))


peft("HRA", "HRAConfig", (*LINEAR, "point2d", "conv2d"), {"r": 4})
peft("HRA, more than inputs", "HRAConfig", LINEAR, {"r": 26})
peft("HRA, orthogonal", "HRAConfig", (*LINEAR, "point2d"), {"r": 4, "apply_GS": True})


@samples("miss")
def _miss(draw: Draw) -> Iterator[Case]:
    def case(variant: str, shape: tuple[int, ...], r: int, outputs: int, mini: bool = False) -> Case:
        tensors = {"miss_block": draw(r, outputs)}
        if mini:
            tensors["miss_block.mini"] = torch.tensor(1.0)

        def also_fits(other: tuple[int, ...]) -> bool:
            if len(other) != 2 or other[1] < r:
                return False
            return other[0] % outputs == 0 if mini else other[0] == outputs

        return Case(variant, ("miss",), tensors, shape, also_fits=also_fits)

    yield case("linear", LAYERS["linear"], 4, 24)
    yield case("wide", LAYERS["linear_wide"], 5, 6)
    yield case("cut", LAYERS["linear"], 5, 24)
    yield case("whole", LAYERS["linear"], 16, 24)
    yield case("mini", LAYERS["linear"], 4, 6, mini=True)
    yield case("mini_of_all", LAYERS["linear"], 3, 24, mini=True)
    # Fewer outputs than inputs, so that the block has no more ranks than outputs.
    yield case("mini_wide", LAYERS["linear"], 8, 3, mini=True)
    yield case("mini_wide_cut", LAYERS["linear"], 7, 3, mini=True)


peft("MiSS", "MissConfig", LINEAR, {"r": 4})
peft("MiSS, cut", "MissConfig", LINEAR, {"r": 5})
peft("MiSS, mini", "MissConfig", LINEAR, {"r": 4, "mini_r": 4, "init_weights": "mini"})


@samples("miss_bat")
def _miss_bat(draw: Draw) -> Iterator[Case]:
    def case(variant: str, shape: tuple[int, ...], r: int) -> Case:
        def also_fits(other: tuple[int, ...]) -> bool:
            return len(other) == 2 and other[0] == shape[0] and other[1] % r == 0

        return Case(
            variant, ("miss_bat",), {"miss_block": draw(shape[0] // r, r, r)}, shape, also_fits=also_fits
        )

    yield case("linear", LAYERS["linear"], 4)
    yield case("wide", LAYERS["linear_wide"], 3)


peft("MiSS, bat", "MissConfig", LINEAR, {"r": 4, "init_weights": "bat"}, spread=0.1)
