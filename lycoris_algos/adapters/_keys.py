"""The key suffixes of an algorithm's tensors, and whether a layer's tensors are that algorithm.

Every algorithm says as data which key suffixes it is stored under. Detection reads only this, so it is
exclusive by construction (exactly one algorithm may accept a layer) and can explain a failure: the nearest
algorithm, and what is missing for it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ..text import quoted


@dataclass(frozen=True)
class KeySpec:
    """Suffixes of one algorithm's tensors.

    ``required`` must all be there. Each item of ``choices`` lists the forms of one factor (a form is a tuple
    of suffixes); exactly one form must be complete, and no piece of another may lie beside it. ``together``
    lists optional groups that come whole or not at all; ``optional`` stand alone.
    """

    required: tuple[str, ...] = ()
    choices: tuple[tuple[tuple[str, ...], ...], ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    optional: tuple[str, ...] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        """Every suffix that this algorithm may be stored under."""
        forms = (name for choice in self.choices for form in choice for name in form)
        groups = (name for group in self.together for name in group)
        return frozenset((*self.required, *forms, *groups, *self.optional))

    def problems(self, present: Collection[str]) -> list[str]:
        """Why ``present`` is not this algorithm, in words; empty when it is."""
        problems = [f"'{name}' is missing" for name in self.required if name not in present]
        for choice in self.choices:
            complete = [form for form in choice if all(name in present for name in form)]
            # A form whose every name lies inside a longer complete form is that form's beginning.
            complete = [f for f in complete if not any(set(f) < set(g) for g in complete)]
            if len(complete) > 1:
                forms = " and ".join("+".join(form) for form in complete)
                problems.append(f"the same factor is stored twice ({forms})")
            elif not complete:
                forms = " or ".join("+".join(f"'{name}'" for name in form) for form in choice)
                problems.append(f"one of {forms} must be complete")
            else:
                every = {name for form in choice for name in form}
                stray = sorted((every - set(complete[0])) & set(present))
                problems += [f"'{name}' lies beside {'+'.join(complete[0])}" for name in stray]
        for group in self.together:
            stored = [name for name in group if name in present]
            if stored and len(stored) < len(group):
                missing = ", ".join(f"'{name}'" for name in group if name not in stored)
                problems.append(f"{missing} is missing beside {quoted(stored[0])}")
        strangers = sorted(set(present) - self.names)
        problems += [f"{quoted(name)} is no part of it" for name in strangers[:8]]
        return problems
