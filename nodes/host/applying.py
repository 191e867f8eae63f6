"""A stack onto a MODEL and a CLIP: clones, patches, and the report of what was done.

The order matters for safety: everything is matched, and refused if it must be, before the first clone is
made; the inputs are never touched. A strength of 0 adds no patch, so that every weight stays bit-identical.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ...lycoris_algos import AdapterSet, NoMatchError, Unmatched
from ...lycoris_algos.formats import is_text_layer
from ...lycoris_algos.inspection import algorithm_lines, unmatched_lines
from ...lycoris_algos.io import base_model, single_line
from ...lycoris_algos.models import identify
from ...lycoris_algos.network import Stack, StackEntry
from .embeddings import FileWords, fit_words, with_words
from .keymap import Targets, clip_targets, model_targets
from .matching import Match, match, patches


class OnUnmatched(str, Enum):
    """What to do about layers of a file that the model does not have."""

    NOTHING = "error if nothing matches"
    ANYTHING = "error if anything is unmatched"
    REPORT = "report only"


@dataclass(frozen=True, eq=False)
class Applied:
    """The patched clones (the inputs themselves where nothing was patched) and the report."""

    model: Any
    clip: Any
    report: str


@dataclass(frozen=True, eq=False)
class _FileMatch:
    """One file of the stack against everything that is wired."""

    entry: StackEntry
    model: Match | None
    clip: Match | None
    words: FileWords | None

    @property
    def placed(self) -> tuple[str, ...]:
        """Every layer of the file that found its place, or its places."""
        found = [part.placed for part in (self.model, self.clip) if part is not None]
        return tuple(dict.fromkeys(item.layer for part in found for item in part))

    @property
    def unmatched(self) -> tuple[Unmatched, ...]:
        wired = [found.unmatched for found in (self.model, self.clip) if found is not None]
        words = self.words.unmatched if self.words is not None else ()
        return (*self.entry.adapters.unmatched, *(item for part in wired for item in part), *words)


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
    of_model = model_targets(model) if model is not None else None
    of_clip = clip_targets(clip) if clip is not None else None
    words = fit_words([entry.adapters for entry in stack], clip) if clip is not None else None
    own_words = words.files if words is not None else [None] * len(stack)
    found = [_match_file(entry, of_model, of_clip, own) for entry, own in zip(stack, own_words, strict=True)]
    for item in found:
        _refuse(item, of_model, of_clip, on_unmatched)
    model_matches = [(f.model, f.entry.multiplier(False)) for f in found if f.model is not None]
    clip_matches = [(f.clip, f.entry.multiplier(True)) for f in found if f.clip is not None]
    report = [
        _strengths(strength_model, strength_clip, clip),
        *(_file_report(item, of_clip is not None) for item in found),
        *_meeting_lines((of_model, model_matches), (of_clip, clip_matches)),
    ]
    patched_clip = _patched(clip, of_clip, clip_matches, strength_clip)
    return Applied(
        _patched(model, of_model, model_matches, strength_model),
        patched_clip if words is None else with_words(patched_clip, clip, words),
        "\n".join(report),
    )


def _match_file(
    entry: StackEntry, model: Targets | None, clip: Targets | None, words: FileWords | None
) -> _FileMatch:
    """Text-encoder layers are looked up in the CLIP, others in the model.

    A name that does not tell (LyCORIS' wrapper) goes to the CLIP if only that answers to it.
    """
    text, rest = [], []
    for layer in entry.adapters:
        in_model = model is not None and model.answers_to(layer)
        in_clip = not in_model and clip is not None and clip.answers_to(layer)
        (text if in_clip or is_text_layer(layer) else rest).append(layer)
    return _FileMatch(
        entry,
        None if model is None else match(entry.adapters, rest, model),
        None if clip is None else match(entry.adapters, text, clip),
        words,
    )


def _refuse(item: _FileMatch, model: Targets | None, clip: Targets | None, on_unmatched: OnUnmatched) -> None:
    if on_unmatched is OnUnmatched.REPORT:
        return
    adapters = item.entry.adapters
    wired = " and ".join(targets.what for targets in (model, clip) if targets is not None)
    if not item.placed:
        raise NoMatchError(
            f"none of the {len(adapters)} layers of '{adapters.name}' fits {wired}.\n"
            f"{_what_it_is(adapters)}\n"
            + "\n".join(unmatched_lines(item.unmatched)[:6])
            + f"\n{_advice(adapters, clip is not None)}"
        )
    if on_unmatched is OnUnmatched.ANYTHING and item.unmatched:
        raise NoMatchError(
            f"{len(item.unmatched)} entries of '{adapters.name}' do not fit {wired}:\n"
            + "\n".join(unmatched_lines(item.unmatched))
            + f"\nSet on_unmatched to '{OnUnmatched.NOTHING.value}' to apply the rest."
        )


def _what_it_is(adapters: AdapterSet) -> str:
    return f"The file holds {'; '.join(algorithm_lines(adapters.values()))}."


def _advice(adapters: AdapterSet, has_clip: bool) -> str:
    if not has_clip and all(map(is_text_layer, adapters)):
        return "The file changes only text encoders: connect a CLIP."
    trained_for = base_model(adapters.metadata) or identify(adapters, adapters.metadata)
    kind = f"for {trained_for}" if trained_for else "for another kind of model"
    return f"It was trained {kind}: use it with that, or remove it."


def _patched(
    patcher: Any, targets: Targets | None, matches: Sequence[tuple[Match, float]], strength: float
) -> Any:
    found = patches(matches, targets) if targets is not None and strength != 0.0 else {}
    if not found:
        return patcher
    clone = patcher.clone()
    accepted = set(clone.add_patches(found, strength))
    missing = [target for target in found if target not in accepted]
    if missing:
        raise NoMatchError(
            f"ComfyUI took the change of {len(found) - len(missing)} of {len(found)} parameters only; "
            f"it refused '{missing[0]}'. Nothing was applied"
        )
    return clone


_DEPENDS = "one change depends on the weight"


def _meeting_lines(*wired: tuple[Targets | None, Sequence[tuple[Match, float]]]) -> list[str]:
    """Names the layers where an adapter that depends on the weight meets another change: order counts."""
    meetings: list[Unmatched] = []
    for targets, matches in wired:
        if targets is None:
            continue
        found = [item for match, multiplier in matches if multiplier != 0.0 for item in match.placed]
        counts = Counter(item.weight for item in found)
        dependent = {item.weight: item.layer for item in found if item.adapter.needs_weight}
        for weight, layer in dependent.items():
            if counts[weight] > 1:
                meetings.append(Unmatched(layer, f"{_DEPENDS}, another changes it too"))
            elif weight is not None and targets.changed_before(weight):
                meetings.append(Unmatched(layer, f"{_DEPENDS}, an earlier node changes it too"))
    if not meetings:
        return []
    return ["the order of the changes matters on these layers:", *unmatched_lines(meetings)]


def _strengths(strength_model: float, strength_clip: float, clip: Any) -> str:
    text = f"strength: model {_strength(strength_model)}"
    return text if clip is None else f"{text}, clip {_strength(strength_clip)}"


def _strength(value: float) -> str:
    return f"{value:g}" if value else "0 (no weight is changed)"


def _file_report(item: _FileMatch, has_clip: bool) -> str:
    adapters, entry = item.entry.adapters, item.entry
    text = sum(map(is_text_layer, adapters))
    total = len(adapters) if has_clip else len(adapters) - text
    lines = [
        f"{entry}: {len(item.placed)} of {total} layers applied",
        *(f"  {line}" for line in algorithm_lines(adapters[layer] for layer in item.placed)),
        *(f"  {line}" for line in (item.words.lines if item.words is not None else ())),
    ]
    if item.unmatched:
        lines += ["  not applied:", *(f"  {line}" for line in unmatched_lines(item.unmatched))]
    if text and not has_clip:
        lines.append(f"  {text} text encoder layers are left out: no CLIP is connected")
    if adapters.embeddings and not has_clip:
        names = single_line(", ".join(adapters.embeddings), 200)
        lines.append(f"  embeddings are left out ({names}): no CLIP is connected")
    return "\n".join(lines)
