"""What PEFT itself is asked to train for the parity tests, as data: nothing of PEFT is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PeftSample:
    """A configuration of PEFT by the name of its class, and layers of ``reference.peft_models`` to put it on.

    ``spread`` and ``middle`` are of the normal distribution that the trained tensors are drawn from.
    """

    name: str
    config: str
    layers: tuple[str, ...]
    options: Mapping[str, Any]
    spread: float
    middle: float


#: In order of registration.
PEFT_SAMPLES: list[PeftSample] = []


def peft(
    name: str,
    config: str,
    layers: tuple[str, ...],
    options: Mapping[str, Any],
    *,
    spread: float = 0.5,
    middle: float = 0.0,
) -> None:
    """Registers a configuration that tests/parity/test_peft.py holds the library to."""
    PEFT_SAMPLES.append(PeftSample(name, config, layers, options, spread, middle))
