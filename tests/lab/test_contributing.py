"""The worked diffs of CONTRIBUTING.md: each is applied to a copy of the pack and does what the text says."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import paths
from lab.worked_diffs import CONTRIBUTING, DiffError, WorkedDiff, worked_diffs

DIFFS = worked_diffs(CONTRIBUTING.read_text("utf-8"))
#: The others need none before them.
AFTER = {"structure": ("algorithm",)}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The pack without what lies beside its files: git's folder, the lab, caches."""
    ignored = shutil.ignore_patterns(".git", ".host", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")
    return shutil.copytree(paths.REPO, tmp_path / "pack", ignore=ignored)


def run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """pytest in ``folder``, with this lab's ComfyUI and models."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"LYCORIS_LAB": str(paths.LAB), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )


def test_everything_that_can_be_added_has_a_diff() -> None:
    assert list(DIFFS) == ["algorithm", "structure", "merge method", "dialect", "model family", "node"]


@pytest.mark.parametrize("name", DIFFS)
def test_a_diff_applies_and_its_tests_pass(name: str, copy: Path) -> None:
    for before in AFTER.get(name, ()):
        DIFFS[before].apply(copy)
    DIFFS[name].apply(copy)
    for tests in DIFFS[name].tests:
        done = run(copy, tests)
        assert done.returncode == 0, f"pytest {tests}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


def test_without_its_diff_an_algorithms_tests_are_not_there(copy: Path) -> None:
    assert run(copy, DIFFS["algorithm"].tests[0]).returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_diff_that_no_longer_fits_is_an_error(copy: Path) -> None:
    stale = DIFFS["dialect"].diff.replace("hcp.DIALECT", "gone.DIALECT")
    with pytest.raises(DiffError, match=r"formats/__init__\.py"):
        WorkedDiff(stale, ()).apply(copy)
    assert not (copy / "lycoris_algos" / "formats" / "atelier.py").exists()


def test_a_section_without_a_diff_is_an_error() -> None:
    with pytest.raises(ValueError, match="'thing'"):
        worked_diffs("# Contributing\n\n## Add a thing\n\nJust write it.\n\n```\npytest tests\n```\n")
