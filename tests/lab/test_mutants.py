"""The mutants: which mistakes are made in a source, which are left out, and that a trial tells them apart."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from lab.paths import REPO, lab_environment
from mutants import edits, trials
from mutants.__main__ import mutants_of, sample_of
from mutants.edits import edits_of
from mutants.trials import Seen

ROOMS = [f"lycoris_algos/{room}" for room in trials.ROOMS]


def changed(source: str) -> list[str]:
    """What ``source``, a statement or a function with one, becomes by each mistake: its last line."""
    edited = edits_of(textwrap.dedent(source).strip())
    return [edit.difference().splitlines()[-1].removeprefix("+") for edit in edited]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x = a < b", ["x = a <= b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = a not in b", ["x = a in b"]),
        ("x = a + b * c", ["x = a - b * c", "x = a + b / c"]),
        ("x = a and b and c", ["x = a or b or c"]),
        ("x = 1", ["x = 2", "x = 0"]),
        ("x = 0.5", ["x = 1.5", "x = -0.5"]),
        ("x = True", ["x = False"]),
        ("x = not a", ["x = a"]),
        ("x = -a", ["x = a"]),
        ("x = min(a, key=b)", ["x = max(a, key=b)"]),
        ("x = a if b else c", ["x = a if not b else c"]),
        ("x = a if b == d else c", ["x = a if b != d else c"]),
        ("x = a if b < d else c", ["x = a if not b < d else c", "x = a if b <= d else c"]),
        ("x = [a for a in b if a]", ["x = [a for a in b if not a]"]),
        ("x += y", ["pass", "x -= y"]),
        ("f(x)", ["pass"]),
        ("raise ValueError('ä' + str(1 + 2))", ["pass"]),
        ("def f():\n    return x", ["return None"]),
        ("while True:\n    x = y", ["while False:"]),
    ],
)
def test_the_mistakes_of_a_statement(source: str, wanted: list[str]) -> None:
    assert changed(source) == wanted


@pytest.mark.parametrize(
    "source",
    [
        '"""Text with 1 < 2."""',
        "x: ClassVar[tuple[int, Literal[1]]]",
        "def f(x: int | None, *, y: Literal[1]) -> bool | None: ...",
        "assert x > 1",
        "x = f'{a + 1}'",
        "def __repr__(self):\n    return a + b",
        "_MERGED = 128",
        "x = zip(a, b, strict=True)",
        "@dataclass(frozen=True)\nclass A(B, register=False):\n    pass",
        "if TYPE_CHECKING:\n    x = 1",
        "def f():\n    return None",
    ],
)
def test_what_no_test_should_notice_is_left_out(source: str) -> None:
    assert changed(source) == []


def test_what_is_left_out_is_there() -> None:
    names = Counter(
        node.id
        for room in ROOMS
        for file in (REPO / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    assert names.keys() >= edits.FOR_SPEED


def test_a_mistake_knows_its_function_and_leaves_the_source_as_it_was() -> None:
    source = "a = 1\n\nclass A:\n    b = 2\n"
    source += "\n    @property\n    def c(self, d=3):\n        return [lambda: e < f]\n"
    source += "\n@functools.cache\ndef g():\n    return h < i\n"
    found = edits_of(source)
    assert {edit.line: edit.function for edit in found} == {1: None, 4: None, 7: None, 8: 6, 12: None}
    for edit in found:
        edit.compiled("x.py")
        assert edit.difference()
    assert ast.dump(found[0].module) == ast.dump(ast.parse(source))


def test_a_sample_is_drawn_from_all_of_the_source() -> None:
    every = list(mutants_of(ROOMS))
    assert sample_of(every, 0, 1) == every
    sample = sample_of(every, len(every) // 4, 1)
    own, all_of = (Counter(mutant.path for mutant in mutants) for mutants in (sample, every))
    assert all(abs(own[path] - count / 4) <= 2 for path, count in all_of.items())
    assert sample == sample_of(every, len(sample), 1) != sample_of(every, len(sample), 2)
    path = "lycoris_algos/ops/tucker.py"
    lines = [mutant.edit.line for mutant in mutants_of([path])]
    assert [mutant.edit.line for mutant in mutants_of([f"{path}:{lines[0]}"])] == [
        line for line in lines if line == lines[0]
    ]


def test_the_narrowest_tests_go_first_and_only_those_that_run_the_function() -> None:
    path = "lycoris_algos/ops/tucker.py"
    own, other = frozenset({(path, 3)}), frozenset({(path, 9)})
    wide = frozenset({(path, 3), ("lycoris_algos/ops/rows.py", 1)})
    narrow = Seen("tests/unit/ops/test_tucker.py::narrow", 1.0, own)
    tests = [Seen(f"tests/unit/ops/test_rows.py::{n}", 1.0, wide) for n in range(8)]
    tests += [narrow, Seen("tests/unit/ops/test_tucker.py::not", 1.0, other)]
    found = trials.chosen(tests, path, 3)
    assert found[0] is narrow
    assert len(found) == 9
    assert len(trials.chosen(tests, path, None)) == 10, (
        "what runs on import belongs to every test of the file"
    )
    assert len(trials.chosen(tests, path, 5)) == 10, "as does what no test runs"
    assert len(trials.chosen(tests, "lycoris_algos/ops/ranks.py", 3)) == 10
    long = [Seen(f"tests/unit/ops/test_rows.py::{n}", trials.SECONDS / 2, wide) for n in range(8)]
    assert len(trials.chosen(long, path, 3)) == 2


def test_a_run_finds_what_the_tests_notice_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path, tests = "lycoris_algos/ops/scratch.py", "tests/unit/ops/test_scratch.py"
    command = [sys.executable, "-m", "mutants", path, "--workers", "2", "--tests", tests]

    def run() -> str:
        environment = {**lab_environment(), "LYCORIS_LAB": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: some survived
        return done.stdout

    count = len(list(mutants_of([path])))
    (caught,) = map(int, re.findall(rf"all: (\d+) of {count} caught", run()))
    assert count // 2 < caught <= count
    (kept,) = (tmp_path / "mutants").glob("*/outcomes.jsonl")
    assert len(kept.read_text("utf-8").splitlines()) == count
    kept.write_text(kept.read_text("utf-8").replace("caught", "survived", 1), "utf-8")
    again = subprocess.run(
        command,
        env={**lab_environment(), "LYCORIS_LAB": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"all: {caught - 1} of {count} caught" in again.stdout
