"""What a reference is, and how one is built when it is asked for."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Not equal, so that a scale that is forgotten or applied twice shows.
RANK, ALPHA = 4, 2.0
#: Standard deviation of what rotations are made of.
OFT_SPREAD = 0.15


@dataclass(frozen=True, eq=False)
class Reference:
    """One layer of a file, and what it does to the layer it was trained for."""

    name: str
    #: {suffix: tensor}, exactly as saved.
    tensors: dict[str, Tensor]
    weight: Tensor
    bias: Tensor | None
    #: ΔW and Δb at multiplier 1, in float64. None: the bias stays as it is.
    delta: Tensor
    bias_delta: Tensor | None = None
    #: The file's metadata, as the trainer writes it.
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: Whether the tensors alone do not determine ΔW.
    needs_metadata: bool = False
    layer: str = "lora_unet_x"
    #: Keys of the file that belong to no layer.
    loose: dict[str, Tensor] = field(default_factory=dict)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """{key: tensor} of the whole file."""
        return {f"{self.layer}.{suffix}": value for suffix, value in self.tensors.items()} | self.loose

    @property
    def forward_weight(self) -> Tensor:
        """The weight that the trained layer computes with, in float64."""
        return self.weight.double() + self.delta

    @property
    def forward_bias(self) -> Tensor | None:
        """The bias that the trained layer computes with, in float64."""
        if self.bias is None or self.bias_delta is None:
            return None if self.bias is None else self.bias.double()
        return self.bias.double() + self.bias_delta


@dataclass(frozen=True, eq=False)
class NoReference:
    """A case that the reference can save but not compute, and why."""

    name: str
    reason: str
    state_dict: dict[str, Tensor]
    weight: Tensor
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Case:
    """A reference that is built when it is asked for."""

    name: str
    algo: str
    make: Callable[[], Reference | NoReference]

    def build(self) -> Reference | NoReference:
        """The reference; the same object each time."""
        return _build(self)


@functools.cache
def _build(case: Case) -> Reference | NoReference:
    with torch.random.fork_rng(devices=[]):  # the modules draw their start values from the global generator
        torch.manual_seed(zlib.crc32(case.name.encode()))
        return case.make()
