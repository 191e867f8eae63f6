"""A stack onto a MODEL and a CLIP: clones, patches, and the report of what was done.

The order matters for safety: everything is matched, and refused if it must be, before the first clone is
made; the inputs are never touched. A strength of 0 adds no patch, so that every weight stays bit-identical.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ...lycoris_algos import AdapterSet, NoMatchError, Unmatched
from ...lycoris_algos.inspection import algorithm_lines, doubled_lines, unmatched_lines
from ...lycoris_algos.model_files import ModelIndex, advice, doubts, overlap
from ...lycoris_algos.network import Stack, StackEntry, check_multipliers
from ...lycoris_algos.ops.workers import one_thread
from ...lycoris_algos.text import Brief, as_report, capped, listed, quoted
from .embeddings import FileWords, fit_words, with_words
from .keymap import Target, Targets, key_and_part, known_layers
from .loading import complete_loads
from .matching import Match, Placed, match, patches, placed_in
from .overflow import overflow_lines
from .patch import LycorisPatch


class OnUnmatched(str, Enum):
    """What to do about layers of a file that the model does not have."""

    NOTHING = "error if nothing matches"
    ANYTHING = "error if anything is unmatched"
    REPORT = "report only"


@dataclass(frozen=True, eq=False)
class Applied(Brief):
    """The patched clones (the inputs themselves where nothing was patched) and the report."""

    model: Any
    clip: Any
    report: str


@dataclass(frozen=True, eq=False)
class _FileMatch(Brief):
    """One file of the stack against everything that is wired."""

    entry: StackEntry
    match: Match
    words: FileWords | None

    @property
    def unmatched(self) -> tuple[Unmatched, ...]:
        words = self.words.unmatched if self.words is not None else ()
        return (*self.entry.adapters.unmatched, *self.match.unmatched, *words)

    def placed_in(self, is_text: bool) -> list[tuple[Placed, float]]:
        """What changes the text encoders, or the diffusion model, and each with its multiplier."""
        return [
            (item, self.entry.multiplier(item.layer, is_text, self.match.role))
            for item in placed_in(self.match, is_text)
        ]


# Preparing a layer takes many small operations, each of which would wait for the slowest thread.
@one_thread()
def apply_stack(
    model: Any,
    clip: Any,
    stack: Stack,
    strength_model: float,
    strength_clip: float,
    on_unmatched: OnUnmatched,
) -> Applied:
    """Patches clones of ``model`` and ``clip`` (either may be None) with ``stack``.

    Raises NoMatchError as ``on_unmatched`` asks, before anything is cloned.
    """
    known = known_layers(model, clip)
    words = fit_words([entry.adapters for entry in stack], clip) if clip is not None else None
    own_words = words.files if words is not None else [None] * len(stack)
    matched = [
        _FileMatch(entry, match(entry.adapters, known), own)
        for entry, own in zip(stack, own_words, strict=True)
    ]
    for item in matched:
        _refuse(item, known, on_unmatched)
    check_multipliers(stack, [item.match.role for item in matched])
    of_model, of_clip = ([item.placed_in(is_text) for item in matched] for is_text in (False, True))
    report = [
        _strengths(strength_model, strength_clip, clip),
        *(_file_report(item, known) for item in matched),
        *_meeting_lines((known.model, of_model), (known.text, of_clip)),
    ]
    made = patches(of_model) if strength_model != 0.0 else {}
    made_for_clip = patches(of_clip) if strength_clip != 0.0 else {}
    report += overflow_lines(known.model, made, strength_model)
    report += overflow_lines(known.text, made_for_clip, strength_clip)
    patched_clip = _patched(clip, made_for_clip, strength_clip)
    return Applied(
        _patched(model, made, strength_model),
        patched_clip if words is None else with_words(patched_clip, clip, words),
        as_report(report),
    )


def _refuse(item: _FileMatch, known: ModelIndex[Targets], on_unmatched: OnUnmatched) -> None:
    if on_unmatched is OnUnmatched.REPORT:
        return
    adapters = item.entry.adapters
    wired = " and ".join(targets.what for targets in (known.model, known.text) if targets is not None)
    if not item.match.placed:
        raise NoMatchError(
            f"none of the {len(adapters)} layers of {quoted(adapters.name)} fits {wired}.\n"
            f"{_what_it_is(adapters)}\n"
            + "\n".join(unmatched_lines(item.unmatched)[:6])
            + f"\n{_advice(item, known)}"
        )
    if on_unmatched is OnUnmatched.ANYTHING and item.unmatched:
        raise NoMatchError(
            f"{len(item.unmatched)} entries of {quoted(adapters.name)} do not fit {wired}:\n"
            + "\n".join(capped(unmatched_lines(item.unmatched), 20))
            + f"\nSet on_unmatched to '{OnUnmatched.NOTHING.value}' to apply the rest."
        )


def _what_it_is(adapters: AdapterSet) -> str:
    return f"The file holds {'; '.join(algorithm_lines(adapters.values()))}."


def _advice(item: _FileMatch, known: ModelIndex[Targets]) -> str:
    adapters = item.entry.adapters
    if len(item.match.left_out) == len(adapters) and all(item.match.left_out.values()):
        return "The file changes only text encoders: connect a CLIP."
    return advice(adapters, known)


def _patched(patcher: Any, made: Mapping[Target, LycorisPatch], strength: float) -> Any:
    if not made:
        return patcher
    clone = patcher.clone()
    accepted = set(clone.add_patches(dict(made), strength))
    missing = [target for target in made if target not in accepted]
    if missing:
        raise NoMatchError(
            f"ComfyUI took the change of {len(made) - len(missing)} of {len(made)} parameters only; "
            f"it refused {quoted(str(missing[0]))}. Nothing was applied"
        )
    complete_loads(getattr(clone, "patcher", clone))  # a CLIP has one
    return clone


_DEPENDS = "one change depends on the weight"


def _meeting_lines(*wired: tuple[Targets | None, Sequence[Sequence[tuple[Placed, float]]]]) -> list[str]:
    """Names the layers where an adapter that depends on the weight meets another change: order counts."""
    meetings: list[Unmatched] = []
    for targets, files in wired:
        if targets is None:
            continue
        applied = [item for placed in files for item, multiplier in placed if multiplier != 0.0]
        counts = Counter(item.weight for item in applied if item.weight is not None)
        at: dict[str, list[Target]] = defaultdict(list)
        for weight in counts:
            at[key_and_part(weight)[0]].append(weight)
        dependent = {item.weight: item.layer for item in applied if item.adapter.needs_weight}
        for weight, layer in dependent.items():
            if weight is None:
                continue
            key, part = key_and_part(weight)
            if sum(counts[other] for other in at[key] if overlap(part, key_and_part(other)[1])) > 1:
                meetings.append(Unmatched(layer, f"{_DEPENDS}, another changes it too"))
            elif targets.changed_before(weight):
                meetings.append(Unmatched(layer, f"{_DEPENDS}, an earlier node changes it too"))
    if not meetings:
        return []
    return ["the order of the changes matters on these layers:", *unmatched_lines(meetings)]


def _strengths(strength_model: float, strength_clip: float, clip: Any) -> str:
    text = f"strength: model {_strength(strength_model)}"
    return text if clip is None else f"{text}, clip {_strength(strength_clip)}"


def _strength(value: float) -> str:
    return f"{value:g}" if value else "0 (no weight is changed)"


def _file_report(item: _FileMatch, known: ModelIndex[Targets]) -> str:
    adapters, placed = item.entry.adapters, item.match.placed
    total = len(adapters) - len(item.match.left_out)
    lines = [
        f"{item.entry}: {len(placed)} of {total} layers applied",
        *(f"  {line}" for line in doubts(adapters, known, len(placed), total)),
        *(f"  {line}" for line in algorithm_lines(adapters[layer] for layer in placed)),
        *(f"  {line}" for line in capped(item.words.lines if item.words is not None else ())),
    ]
    lines += [f"  {line}" for line in doubled_lines(item.match.doubled)]
    if item.unmatched:
        lines += ["  not applied:", *(f"  {line}" for line in unmatched_lines(item.unmatched))]
    for is_text, count in Counter(item.match.left_out.values()).items():
        what, socket = ("text encoder", "CLIP") if is_text else ("diffusion model", "MODEL")
        lines.append(f"  {count} {what} layers are left out: no {socket} is connected")
    if adapters.embeddings and known.text is None:
        names = listed(adapters.embeddings)
        lines.append(f"  embeddings are left out ({names}): no CLIP is connected")
    return "\n".join(lines)
