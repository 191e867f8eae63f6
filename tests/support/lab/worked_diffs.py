"""The worked diffs of CONTRIBUTING.md, taken out of its text.

    python -m lab.worked_diffs NAME ...

Applies the named ones ("algorithm", "merge method" …) to this repository, with git.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab import paths

CONTRIBUTING = paths.REPO / "CONTRIBUTING.md"
_SECTION = re.compile(r"^## Add an? (?P<name>.+)\n(?P<body>(?:(?!## ).*\n)*)", re.MULTILINE)
_DIFF = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TESTS = re.compile(r"^pytest (.+)$", re.MULTILINE)


class DiffError(Exception):
    """A diff that does not fit the files that it is for, in git's words."""


@dataclass(frozen=True)
class WorkedDiff:
    """A section's diff, and the arguments of pytest that it names."""

    diff: str
    tests: tuple[str, ...]

    def apply(self, folder: Path) -> None:
        """Applies it to the files in ``folder``; DiffError, and nothing is changed, if it does not fit."""
        command = ["git", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(command, cwd=folder, input=self.diff.encode(), capture_output=True, check=False)
        if done.returncode:
            raise DiffError(done.stderr.decode(errors="replace").strip())


def worked_diffs(text: str) -> dict[str, WorkedDiff]:
    """{what is added: its diff} of every section "Add a …"; a section without a diff is a ValueError."""
    found = {}
    for section in _SECTION.finditer(text):
        name, body = section["name"], section["body"]
        diff, tests = _DIFF.search(body), tuple(_TESTS.findall(body))
        if diff is None or not tests:
            raise ValueError(f"the section of '{name}' has no diff, or names no tests")
        found[name] = WorkedDiff(diff[1], tests)
    return found


def main(names: list[str]) -> int:
    every = worked_diffs(CONTRIBUTING.read_text("utf-8"))
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        print(f"name some of: {', '.join(every)}", file=sys.stderr)
        return 2
    for name in names:
        every[name].apply(paths.REPO)
        print(f"{name}: applied; now run", *(f"pytest {tests}" for tests in every[name].tests), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
