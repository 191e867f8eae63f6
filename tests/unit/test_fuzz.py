"""Any file at all: it is refused in clean words, or right in everything. What that means: fuzzing/_claims.py.

2,000 examples, the same each time. ``make fuzz EXAMPLES=100000`` tries others, as many. A failure prints its
``Recipe``, which ``write(folder, SUBJECTS)`` makes the file of.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import baking
from fuzzing import MODELS, MUTATIONS, SUBJECTS, Recipe, adapter_file, model_file, recipes
from hypothesis import HealthCheck, given, settings

#: How many, where they are asked for by hand; then each run has its own.
ASKED = int(os.environ.get("FUZZ_EXAMPLES", "0"))
EXAMPLES = ASKED or 2_000

ADAPTERS = baking.entry(baking.every_block()).adapters


def fuzzed(share: float) -> settings:
    """For ``share`` of all examples."""
    return settings(
        max_examples=max(int(EXAMPLES * share), 1),
        derandomize=not ASKED,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@fuzzed(0.85)
@given(recipes(SUBJECTS))
def test_an_adapter_file(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        adapter_file(recipe.write(Path(folder), SUBJECTS), Path(folder), recipe.choice)


@fuzzed(0.15)
@given(recipes(MODELS))
def test_a_model_file(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model_file(recipe.write(Path(folder), MODELS), ADAPTERS, Path(folder))


def test_what_the_recipes_begin_with_is_valid(tmp_path: Path) -> None:
    for number, draft in enumerate(SUBJECTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert adapter_file(draft.write(folder), folder, number) == "loaded", draft.title
    for draft in MODELS:
        assert model_file(draft.write(tmp_path), ADAPTERS, tmp_path) == "baked", draft.title


def test_every_mutation_changes_a_file(tmp_path: Path) -> None:
    before = {number: draft.write(tmp_path).read_bytes() for number, draft in enumerate(SUBJECTS[:12])}
    for name in MUTATIONS:
        assert any(
            Recipe(number, ((name, where, where + 1),)).write(tmp_path, SUBJECTS).read_bytes()
            != before[number]
            for number in before
            for where in (1, 5)
        ), name
