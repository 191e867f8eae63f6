"""Valid files, ways to damage them, and what must hold of whatever comes out.

A ``Recipe`` is small plain data: which file, and which steps with which numbers. It makes the same bytes each
time, so a failing one is a line that can be pasted into a test. What a step's numbers mean is its own affair;
it takes them modulo the choices that it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from ._claims import adapter_file, model_file
from ._draft import Draft
from ._subjects import MODELS, SUBJECTS
from .mutations import MUTATIONS

__all__ = [
    "MODELS",
    "MUTATIONS",
    "SUBJECTS",
    "Recipe",
    "adapter_file",
    "model_file",
    "recipes",
]

Step = tuple[str, int, int]


@dataclass(frozen=True)
class Recipe:
    """``subject`` of a list of valid files, after ``steps``: (name of a mutation, where, which)."""

    subject: int
    steps: tuple[Step, ...]

    @property
    def choice(self) -> int:
        """Any number, for what is done with the file afterwards."""
        return sum(which for _, _, which in self.steps)

    def draft(self, subjects: list[Draft]) -> Draft:
        """The file, not yet written."""
        draft = subjects[self.subject % len(subjects)].copy()
        for name, where, which in self.steps:
            MUTATIONS[name](draft, where, which)
        return draft

    def write(self, folder: Path, subjects: list[Draft]) -> Path:
        """The file, in ``folder``."""
        return self.draft(subjects).write(folder)


def recipes(subjects: list[Draft]) -> st.SearchStrategy[Recipe]:
    """Recipes of one or two steps for any of ``subjects``."""
    numbers = st.integers(0, 9_999)
    step = st.tuples(st.sampled_from(sorted(MUTATIONS)), numbers, numbers)
    steps = st.lists(step, min_size=1, max_size=2).map(tuple)
    return st.builds(Recipe, st.integers(0, len(subjects) - 1), steps)
