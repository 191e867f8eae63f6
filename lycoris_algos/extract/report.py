"""The result of an extraction, as data and as a text: what is kept, in how many bytes, and what is not."""

from __future__ import annotations

from dataclasses import dataclass

from ..deltas import (
    Outcome,
    comparison_notes,
    fallback_notes,
    family_lines,
    forms,
    percent,
    retained,
    worst_error,
)
from ..network import AdapterSet
from ..text import Brief, as_report, listed, quoted
from .choice import Comparison
from .plan import ExtractPlan


@dataclass(frozen=True, eq=False)
class Extracted(Brief):
    """The adapter set, and what became of every parameter that differs. ``broken`` ones hold NaN."""

    adapters: AdapterSet
    outcomes: tuple[Outcome, ...]
    plan: ExtractPlan
    broken: tuple[str, ...]
    comparison: Comparison | None

    @property
    def retained(self) -> float:
        """The share of energy, Σ|D̂|² against Σ|D|², that is kept of everything that differs."""
        return retained(self.outcomes)

    def report(self) -> str:
        """For a person: the plan, totals, families of layers, how algorithms compare, what is left out."""
        same = len(self.plan.parameters) - len(self.outcomes) - len(self.broken)
        lines = [
            str(self.plan),
            f"result: {len(self.adapters)} layers, {self.adapters.size_bytes / 1e6:.2f} MB, "
            f"{forms(self.outcomes)}",
            f"  keeps {percent(self.retained)} of the energy; largest error {worst_error(self.outcomes):.1e} "
            "of a layer's largest change",
            *(f"  {line}" for line in family_lines(self.outcomes)),
            *([] if self.comparison is None else (f"  {line}" for line in self.comparison.lines())),
        ]
        if same:
            lines.append(f"  {same} weights and biases are the same in both")
        if self.broken:
            lines.append(
                f"  left out, NaN or infinity in one of the models: {listed(self.broken, 4, quoted)}"
            )
        out = [outcome.name for outcome in self.outcomes if outcome.left_out]
        if out:
            lines.append(f"  left out, no room in the size: {len(out)}, such as {quoted(out[0])}")
        notes = [*fallback_notes(self.outcomes), *comparison_notes(self.outcomes)]
        return as_report([*lines, *(f"  note: {note}" for note in notes)])
