"""The result of a combination, as data and as a text: how much is kept, and how large the error is."""

from __future__ import annotations

from dataclasses import dataclass

from ...adapters import component
from ...deltas import (
    Outcome,
    comparison_notes,
    fallback_notes,
    family_lines,
    forms,
    percent,
    retained,
    worst_error,
)
from ...network import AdapterSet
from ...text import Brief, as_report, quoted
from .options import FULL
from .plan import CombinePlan, ParameterPlan, Route


@dataclass(frozen=True, eq=False)
class Combined(Brief):
    """The combined adapter set, and what became of every parameter. ``note`` says how it is spelled."""

    adapters: AdapterSet
    outcomes: tuple[Outcome, ...]
    plan: CombinePlan
    note: str = ""

    @property
    def retained(self) -> float:
        """The share of energy, Σ|D̂|² against Σ|D|², that is kept of everything that was measured."""
        return retained(self.outcomes)

    @property
    def largest_error(self) -> float:
        """max|D − D̂| as a share of max|D| on its layer, the worst over all layers."""
        return worst_error(self.outcomes)

    def report(self) -> str:
        """For a person: method and files, totals, a line per family of layers, and what is unusual."""
        plan = self.plan
        against = "the live stack" if _is_live(plan) else f"'{plan.options.method}' computed exactly"
        size = self.adapters.size_bytes
        lines = [
            str(plan),
            f"result: {len(self.adapters)} layers, {size / 1e6:.2f} MB, {forms(self.outcomes)}",
            f"  keeps {percent(self.retained)} of the energy; largest error {self.largest_error:.1e} "
            f"of a layer's largest change, against {against}",
            *(f"  {line}" for line in family_lines(self.outcomes)),
            *(f"  note: {note}" for note in self._notes()),
        ]
        return as_report(lines)

    def _notes(self) -> list[str]:
        notes = [self.note] if self.note else []
        notes += fallback_notes(self.outcomes)
        out = [outcome for outcome in self.outcomes if outcome.left_out]
        if out:
            names = f"{len(out)} parameters are left out, such as {quoted(out[0].name)}"
            why = "nothing of them is left, or the budget has no room for them"
            notes.append(f"{names}: {why}")
        unmeasured = [
            outcome for outcome in self.outcomes if outcome.measured is None and not outcome.left_out
        ]
        if unmeasured:
            notes.append(
                f"{len(unmeasured)} layers depend on the weight and were kept as they are: not measured"
            )
        return [*notes, *comparison_notes(self.outcomes)]


def _is_live(plan: CombinePlan) -> bool:
    meets = any(
        any(c.adapter.needs_weight for c in parameter.contributions[1:]) for parameter in plan.parameters
    )
    linear = plan.options.merge_method.like_stack and plan.options.scaling == 1.0
    return linear and (plan.options.live_order or not meets)


def form_of(parameter: ParameterPlan) -> str:
    """What ``parameter`` is stored as, in words."""
    if parameter.route is Route.KEPT:
        return " + ".join(parameter.contributions[0].adapter.titles)
    if parameter.is_vector:
        return "vector"
    return "whole" if parameter.form == FULL else component(parameter.form).title
