"""What became of the change of one parameter, and what reports say of many: forms, ranks, what is kept."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..text import Brief, capped, listed, single_line
from .measure import Difference

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, eq=False)
class Outcome(Brief):
    """One parameter of a result; ``form`` is what it is stored as, in words.

    ``measured`` compares what is stored, rounding and all, with what was asked for; None where that depends
    on the weight and nothing was changed. ``rank`` is None for what has none, and for what was left out.
    ``lora_energy`` is the share of energy that a LoRA of as many bytes would keep (LoKr and LoHa fits).
    """

    name: str
    form: str
    rank: int | None
    size_bytes: int
    measured: Difference | None
    lora_energy: float | None = None
    on_cpu: bool = False

    @property
    def left_out(self) -> bool:
        """Whether the result does not hold it."""
        return self.size_bytes == 0


def retained(outcomes: Sequence[Outcome]) -> float:
    """The share of energy, Σ|D̂|² against Σ|D|², that is kept of everything that was measured."""
    measured = [outcome.measured for outcome in outcomes if outcome.measured is not None]
    total, lost = sum(m.energy for m in measured), sum(m.lost for m in measured)
    return 1.0 - lost / total if total else 1.0


def worst_error(outcomes: Sequence[Outcome]) -> float:
    """max|D − D̂| as a share of max|D| on its layer, the worst over all layers."""
    return max((_error(outcome) for outcome in outcomes), default=0.0)


def family_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each family of layers, which differ by numbers in their names."""
    families: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        families[single_line(_NUMBER.sub("*", outcome.name))].append(outcome)
    lines = [
        f"{len(own)}× {family}: {forms(own)}, keeps {percent(retained(own))}, error {worst_error(own):.1e}"
        for family, own in families.items()
    ]
    return capped(lines)


def comparison_notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What LoRAs of the same size would keep, where something else was fitted."""
    compared = [(o, o.lora_energy) for o in outcomes if o.lora_energy is not None]
    if not compared:
        return []
    total = sum(o.measured.energy for o, _ in compared if o.measured is not None)
    kept = sum(share * o.measured.energy for o, share in compared if o.measured is not None)
    own = retained([o for o, _ in compared])
    return [
        f"the fitted {compared[0][0].form} layers keep {percent(own)}; LoRAs of the "
        f"same size would keep {percent(kept / total if total else 1.0)}"
    ]


def fallback_notes(outcomes: Sequence[Outcome]) -> list[str]:
    """Which layers were too large for the device."""
    on_cpu = [outcome.name for outcome in outcomes if outcome.on_cpu]
    if not on_cpu:
        return []
    return [
        f"the GPU had no memory for {len(on_cpu)} layers, which were computed on the CPU: "
        + listed(on_cpu, 1)
    ]


def percent(share: float) -> str:
    """With enough digits to tell "nearly all" from "all"."""
    lost = max(0.0, 1.0 - share)
    digits = 1 if lost > 1e-2 else 3 if lost > 1e-4 else 6
    return f"{100 * share:.{digits}f} %" if lost > 1e-9 else "100 %"


def forms(outcomes: Sequence[Outcome]) -> str:
    """ "LoRA of rank 8 to 32 (12), whole (3)": what the parameters are stored as."""
    ranks: dict[str, list[int]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        form = "left out" if outcome.left_out else outcome.form
        counts[form] += 1
        if outcome.rank is not None:
            ranks[form].append(outcome.rank)
    words = []
    for form, count in counts.most_common():
        own = ranks[form]
        span = f" of rank {min(own)}" + (f" to {max(own)}" if min(own) < max(own) else "") if own else ""
        words.append(f"{form}{span}" + (f" ({count})" if len(counts) > 1 else ""))
    return ", ".join(words)


def _error(outcome: Outcome) -> float:
    measured = outcome.measured
    if measured is None or measured.largest == 0.0:
        return 0.0
    return measured.error / measured.largest
