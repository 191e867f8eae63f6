"""What travels on a LYCORIS wire: a tuple of entries, first applied first."""

from __future__ import annotations

from dataclasses import dataclass

from ...lycoris_algos import AdapterSet


@dataclass(frozen=True, eq=False)
class StackEntry:
    """One file and its own multipliers. Fields added later have defaults, so old wires stay valid."""

    adapters: AdapterSet
    strength_model: float = 1.0
    strength_clip: float = 1.0


Stack = tuple[StackEntry, ...]
