"""What a sample is, and where samples register."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: The kinds of layer: the shape of a weight by name. The grouped convolutions have 16 inputs in 4 groups.
LAYERS: dict[str, tuple[int, ...]] = {
    "linear": (24, 16),
    "linear_wide": (6, 30),
    "conv1d_3": (12, 8, 3),
    "conv2d_1x1": (16, 12, 1, 1),
    "conv2d_3x3": (12, 8, 3, 3),
    "conv3d_3": (6, 4, 3, 3, 3),
    "conv2d_3x3_grouped": (16, 4, 3, 3),
    "conv2d_1x1_grouped": (16, 4, 1, 1),
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
    #: Which weights of other shapes it fits as well: an (IA)³ or an OFT knows one side of its weight only.
    also_fits: Callable[[tuple[int, ...]], bool] = lambda shape: False

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


def has_kernel(shape: tuple[int, ...]) -> bool:
    return kernel_size(shape) > 1


def same_outputs(outputs: int) -> Callable[[tuple[int, ...]], bool]:
    """``also_fits`` of what only counts outputs."""
    return lambda shape: shape[:1] == (outputs,)


def same_inputs(inputs: int) -> Callable[[tuple[int, ...]], bool]:
    """``also_fits`` of what only counts input channels."""
    return lambda shape: shape[1:2] == (inputs,)
