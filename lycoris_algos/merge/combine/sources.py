"""The adapter sets of a combination, and which of their layers mean the same.

Files of different trainers name the same layer differently. Where the model is known, it says what a name
means; otherwise names are compared (model_files/known.py), which aligns dialects that follow the model's own
paths. What has no partner is no error (adapters need not change the same layers), but is reported where the
spelling may be the reason.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ...adapters import LayerAdapter
from ...formats import is_text_layer
from ...inspection import doubled_lines, unread_lines
from ...model_files import KnownModel, Overlaps, meaning
from ...models import UNKNOWN, Role
from ...network import StackEntry
from ...network.roles import roles_of
from ...text import Brief, quoted


@dataclass(frozen=True, eq=False)
class Contribution(Brief):
    """What one source says about one layer (or about its bias, which is then an adapter of its own)."""

    index: int
    name: str
    adapter: LayerAdapter
    multiplier: float
    is_text: bool
    #: Asked for where there are rules for multipliers.
    role: Role

    def multiplier_of(self, source: StackEntry) -> float:
        """What ``source`` has for this layer, whether it holds it or not."""
        return source.multiplier(self.name, self.is_text, lambda _: self.role)


def met(sources: Sequence[StackEntry], known: KnownModel | None) -> list[Overlaps]:
    """Of each source, the layers that change the same weight as others of it, as far as that is known."""
    return [Overlaps() if known is None else known.overlaps(source.adapters) for source in sources]


def grouped(
    sources: Sequence[StackEntry], known: KnownModel | None, meeting: Sequence[Overlaps]
) -> list[list[Contribution]]:
    """The layers of all sources, those that mean the same together, in order of first appearance.

    Contributions with multiplier 0 are left out, and what each source does not use since its layers meet.
    """
    groups: dict[Hashable, list[Contribution]] = {}
    ruled = any(source.multipliers for source in sources)
    for index, source in enumerate(sources):
        for name, adapter in source.adapters.items():
            if name in meeting[index].unused:
                continue
            is_text = is_text_layer(name) if known is None else known.is_text(name)
            multiplier = source.multiplier(name, is_text, roles_of(known))
            if multiplier == 0.0:
                continue
            role = source.role(name, roles_of(known)) if ruled else UNKNOWN
            key = meaning(name, known)
            own = groups.setdefault(key, [])
            if own and own[-1].index == index:  # a second name for the same: kept apart, and both count
                own = groups.setdefault((key, name), [])
            own.append(Contribution(index, name, adapter, multiplier, is_text, role))
    return list(groups.values())


def alignment_notes(sources: Sequence[StackEntry], groups: Sequence[Sequence[Contribution]]) -> list[str]:
    """What could not be aligned although it may be the same: layers alone, in files of several dialects."""
    dialects = {source.adapters.dialect for source in sources}
    if len(dialects) < 2:
        return []
    notes = []
    for index, source in enumerate(sources):
        alone = [group[0].name for group in groups if len(group) == 1 and group[0].index == index]
        if alone:
            notes.append(
                f"{len(alone)} of {len(source.adapters)} layers of {quoted(source.adapters.name)} (spelled "
                f"as {source.adapters.dialect}) have no partner in the other files, such as "
                f"{quoted(alone[0])}: if other files change the same layers under other names, give the "
                "model, which tells"
            )
    return notes


def meeting_notes(sources: Sequence[StackEntry], meeting: Sequence[Overlaps]) -> list[str]:
    """What was done about layers of one file that change the same weight."""
    return [
        "\n    ".join([f"in {quoted(source.adapters.name)}", *doubled_lines(own.notes)])
        for source, own in zip(sources, meeting, strict=True)
        if own.notes
    ]


def unread_notes(sources: Sequence[StackEntry]) -> list[str]:
    """What nothing can read of the sources, and the result does not hold."""
    return [
        "\n    ".join(unread_lines(source.adapters.name, source.adapters.unmatched, "not in the result"))
        for source in sources
        if source.adapters.unmatched
    ]
