"""The result of a combination, as data and as a text: how much is kept, and how large the error is."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ...adapters import component
from ...deltas import Difference
from ...network import AdapterSet
from ...text import Brief, as_report, capped, listed, quoted, single_line
from .options import FULL
from .plan import CombinePlan, ParameterPlan, Route

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, eq=False)
class Outcome(Brief):
    """One parameter of the result.

    ``measured`` compares what is stored, rounding and all, with what the method asks for; None where that
    depends on the weight and nothing was changed. ``rank`` is None for what has none, and for what was left
    out. ``lora_energy`` is the share of energy that a LoRA of as many bytes would keep (LoKr and LoHa fits).
    """

    parameter: ParameterPlan
    rank: int | None
    size_bytes: int
    measured: Difference | None
    lora_energy: float | None
    on_cpu: bool = False

    @property
    def left_out(self) -> bool:
        """Whether the result does not hold it."""
        return self.size_bytes == 0


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
        return _retained(self.outcomes)

    @property
    def largest_error(self) -> float:
        """max|D − D̂| as a share of max|D| on its layer, the worst over all layers."""
        return max((_error(outcome) for outcome in self.outcomes), default=0.0)

    def report(self) -> str:
        """For a person: method and files, totals, a line per family of layers, and what is unusual."""
        plan = self.plan
        against = "the live stack" if _is_live(plan) else f"'{plan.options.method}' computed exactly"
        size = self.adapters.size_bytes
        lines = [
            str(plan),
            f"result: {len(self.adapters)} layers, {size / 1e6:.2f} MB, {_forms(self.outcomes)}",
            f"  keeps {_percent(self.retained)} of the energy; largest error {self.largest_error:.1e} "
            f"of a layer's largest change, against {against}",
            *(f"  {line}" for line in self._family_lines()),
            *(f"  note: {note}" for note in self._notes()),
        ]
        return as_report(lines)

    def _family_lines(self) -> list[str]:
        families: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            families[single_line(_NUMBER.sub("*", outcome.parameter.name))].append(outcome)
        lines = [
            f"{len(own)}× {family}: {_forms(own)}, keeps {_percent(_retained(own))}, "
            f"error {max(_error(outcome) for outcome in own):.1e}"
            for family, own in families.items()
        ]
        return capped(lines)

    def _notes(self) -> list[str]:
        notes = [self.note] if self.note else []
        on_cpu = [outcome.parameter.name for outcome in self.outcomes if outcome.on_cpu]
        if on_cpu:
            notes.append(
                f"the GPU had no memory for {len(on_cpu)} layers, which were computed on the CPU: "
                + listed(on_cpu, 1)
            )
        out = [outcome for outcome in self.outcomes if outcome.left_out]
        if out:
            names = f"{len(out)} parameters are left out, such as {quoted(out[0].parameter.name)}"
            why = "nothing of them is left, or the budget has no room for them"
            notes.append(f"{names}: {why}")
        unmeasured = [
            outcome for outcome in self.outcomes if outcome.measured is None and not outcome.left_out
        ]
        if unmeasured:
            notes.append(
                f"{len(unmeasured)} layers depend on the weight and were kept as they are: not measured"
            )
        compared = [(o, o.lora_energy) for o in self.outcomes if o.lora_energy is not None]
        if compared:
            total = sum(o.measured.energy for o, _ in compared if o.measured is not None)
            kept = sum(share * o.measured.energy for o, share in compared if o.measured is not None)
            own = _retained([o for o, _ in compared])
            notes.append(
                f"the fitted {compared[0][0].parameter.form} layers keep {_percent(own)}; LoRAs of the "
                f"same size would keep {_percent(kept / total if total else 1.0)}"
            )
        return notes


def _is_live(plan: CombinePlan) -> bool:
    meets = any(
        any(c.adapter.needs_weight for c in parameter.contributions[1:]) for parameter in plan.parameters
    )
    linear = plan.options.merge_method.like_stack and plan.options.scaling == 1.0
    return linear and (plan.options.live_order or not meets)


def _retained(outcomes: Sequence[Outcome]) -> float:
    measured = [outcome.measured for outcome in outcomes if outcome.measured is not None]
    total, lost = sum(m.energy for m in measured), sum(m.lost for m in measured)
    return 1.0 - lost / total if total else 1.0


def _error(outcome: Outcome) -> float:
    measured = outcome.measured
    if measured is None or measured.largest == 0.0:
        return 0.0
    return measured.error / measured.largest


def _percent(share: float) -> str:
    """With enough digits to tell "nearly all" from "all"."""
    lost = max(0.0, 1.0 - share)
    digits = 1 if lost > 1e-2 else 3 if lost > 1e-4 else 6
    return f"{100 * share:.{digits}f} %" if lost > 1e-9 else "100 %"


def _forms(outcomes: Sequence[Outcome]) -> str:
    """ "LoRA of rank 8 to 32 (12), whole (3)": what the parameters are stored as."""
    ranks: dict[str, list[int]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        form = "left out" if outcome.left_out else _form(outcome.parameter)
        counts[form] += 1
        if outcome.rank is not None:
            ranks[form].append(outcome.rank)
    words = []
    for form, count in counts.most_common():
        own = ranks[form]
        span = f" of rank {min(own)}" + (f" to {max(own)}" if min(own) < max(own) else "") if own else ""
        words.append(f"{form}{span}" + (f" ({count})" if len(counts) > 1 else ""))
    return ", ".join(words)


def _form(parameter: ParameterPlan) -> str:
    if parameter.route is Route.KEPT:
        return " + ".join(parameter.contributions[0].adapter.titles)
    if parameter.is_vector:
        return "vector"
    return "whole" if parameter.form == FULL else component(parameter.form).title
