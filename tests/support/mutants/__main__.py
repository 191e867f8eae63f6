"""`make mutants`: draw a sample of mutants, try each, and print how many were caught and which were not."""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from lab.paths import LAB, REPO

from .edits import edits_of
from .trials import QUIET, ROOMS, TESTS, Forks, Mutant, Outcome, Seen, Trials, observe, read_observed

CAUGHT = (Outcome.CAUGHT, Outcome.TOO_SLOW)


def mutants_of(places: Sequence[str]) -> Iterator[Mutant]:
    """All of ``places``: folders, files, or FILE:LINE."""
    for place in places:
        path, _, line = place.partition(":")
        for file in sorted((REPO / path).rglob("*.py")) if (REPO / path).is_dir() else [REPO / path]:
            for number, edit in enumerate(edits_of(file.read_text("utf-8"))):
                if not line or edit.line == int(line):
                    yield Mutant(file.relative_to(REPO).as_posix(), number, edit)


def sample_of(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """One at random of each of ``count`` equal stretches, so that every file has its share; all for 0."""
    count = min(count or len(mutants), len(mutants))
    ends = [number * len(mutants) // count for number in range(count + 1)]
    numbers = random.Random(seed)
    return [mutants[numbers.randrange(start, stop)] for start, stop in itertools.pairwise(ends)]


class Run:
    """A run over mutants, as a plugin of pytest: it takes the place of running the tests that were collected.

    What is known is kept in ``folder``, so that a run which was stopped goes on where it was.
    """

    def __init__(self, mutants: Sequence[Mutant], tests: Sequence[str], folder: Path, workers: int) -> None:
        self._mutants = mutants
        self._observations = {path: folder / f"{path.replace('/', '-')}.json" for path in tests}
        self._forks = Forks(workers)
        self._kept = folder / "outcomes.jsonl"
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        if self._kept.is_file():
            for path, number, outcome in map(json.loads, self._kept.read_text("utf-8").splitlines()):
                self.outcomes[path, number] = Outcome(outcome)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Tries all mutants that were not tried before."""
        trials = Trials(session.items, self._observed(session.items), self._forks)
        trials.control(self._mutants[0].path)
        self._forks.finish()
        for mutant in self._mutants:
            if (mutant.path, mutant.number) not in self.outcomes:
                trials.start(mutant, functools.partial(self._keep, mutant))
        self._forks.finish()
        return True

    def _observed(self, items: Sequence[pytest.Item]) -> list[Seen]:
        for path, file in self._observations.items():
            if not file.is_file():
                own = [item for item in items if item.nodeid.startswith(path)]
                self._forks.start(functools.partial(observe, own, file), int)
        self._forks.finish()
        return [test for file in self._observations.values() for test in read_observed(file)]

    def _keep(self, mutant: Mutant, outcome: Outcome) -> None:
        self.outcomes[mutant.path, mutant.number] = outcome
        with self._kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps([mutant.path, mutant.number, outcome.value]) + "\n")
        print(end="." if outcome in CAUGHT else "S", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if fewer than ``--share`` percent were caught."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="how many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--share", type=float, default=90.0, help="percent that must be caught")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files or folders of tests that are tried")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("places", nargs="*", help="folders, files or FILE:LINE of the library")
    options = parser.parse_args(arguments)
    os.chdir(REPO)
    os.environ.update(OMP_NUM_THREADS="1", HYPOTHESIS_PROFILE="ci")
    every = list(mutants_of(options.places or [f"lycoris_algos/{room}" for room in ROOMS]))
    mutants = sample_of(every, options.sample, options.seed)
    print(f"{len(mutants)} of {len(every)} mutants, seed {options.seed}", flush=True)
    run = Run(mutants, options.tests, _folder(options.tests), options.workers)
    code = pytest.main([*QUIET, *options.tests], plugins=[run])
    return int(code) or int(_report(mutants, run.outcomes) < options.share)


def _report(mutants: Sequence[Mutant], outcomes: Mapping[tuple[str, int], Outcome]) -> float:
    """Prints the survivors and the shares; answers the share of all, in percent."""
    rooms: dict[str, list[bool]] = defaultdict(list)
    for mutant in mutants:
        outcome = outcomes[mutant.path, mutant.number]
        rooms[mutant.path.split("/")[1]].append(outcome in CAUGHT)
        if outcome not in CAUGHT:
            print(f"\n{mutant.path}:{mutant.edit.line} {outcome.value}\n{mutant.edit.difference()}")
    every = [caught for room in rooms.values() for caught in room]
    print()
    for room, caught in {**rooms, "all": every}.items():
        print(f"{room}: {sum(caught)} of {len(caught)} caught, {100 * sum(caught) / len(caught):.1f} %")
    return 100 * sum(every) / len(every)


def _folder(tests: Sequence[str]) -> Path:
    """Where a run keeps what it knows: anew after any change of the library or the tests."""
    digest = hashlib.sha256("\n".join(tests).encode())
    for root in ("lycoris_algos", "tests/unit", "tests/support"):
        for file in sorted((REPO / root).rglob("*.py")):
            digest.update(file.read_bytes())
    folder = LAB / "mutants" / digest.hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
