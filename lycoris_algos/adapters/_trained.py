"""Types for what metadata say about training: a trainer's facts, PEFT's configuration, PEFT's reading.

Who reads metadata and configurations (../network) makes these; the algorithms know what follows for their
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..text import Brief

if TYPE_CHECKING:
    from ._base import Algorithm


@dataclass(frozen=True)
class TrainingFacts(Brief):
    """What a trainer's metadata say: ``algo`` and ``args`` in LyCORIS' words, ``module`` in kohya's."""

    algo: str
    module: str
    #: The rank that training was asked for, where it says so.
    rank: float | None
    args: Mapping[str, str]
    #: Whether the file stores alpha as the user gave it although rs_lora was on (LyCORIS before 3.1).
    raw_alphas: bool

    def flag(self, name: str) -> bool:
        """Whether the training option ``name`` was on."""
        return self.args.get(name, "").strip().lower() in ("true", "1", "yes")


class PeftSettings(Protocol):
    """PEFT's configuration as it applies to one layer."""

    def __getitem__(self, key: str) -> object:
        """The value of ``key``, or None."""

    def number(self, *keys: str) -> float | None:
        """The first of ``keys`` that is a number."""

    def of_layer(self, patterns: str, *keys: str) -> float | None:
        """The number that the table ``patterns`` has for this layer, else the first of ``keys``."""

    def is_of(self, kind: str) -> bool:
        """Whether PEFT trained it, as ``kind``; others store the same tensors and mean another thing."""

    def is_older_than(self, major: int, minor: int) -> bool:
        """Whether a PEFT before that version wrote it."""


class PeftReading(NamedTuple):
    """An algorithm as PEFT trained it, and what was done about it."""

    algorithm: Algorithm
    note: str = ""
