"""The command line as a whole: what it answers at once, and that its commands share one vocabulary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lycoris_algos
from lycoris_algos.cli import COMMANDS, main

ROOT = Path(__file__).parents[3]


def called(*arguments: str) -> tuple[str, set[str]]:
    """(what ``python -m lycoris_algos`` prints, the modules that it imports)."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lycoris_algos", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout, {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize(
    ("option", "said"), [("--help", [*COMMANDS]), ("--version", [lycoris_algos.__version__])]
)
def test_it_answers_without_pytorch(option: str, said: list[str]) -> None:
    told, modules = called(option)
    assert all(words in told for words in said)
    assert "lycoris_algos.cli" in modules
    assert not {"torch", "numpy", "regex"} & modules


def test_that_pytorch_is_imported_would_be_seen() -> None:
    assert "torch" in called("convert", "--help")[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: lycoris_algos {command}")
    assert ("--output" in told) == (command != "inspect")  # which writes nothing but a figure


def test_what_is_imported_late_is_what_the_library_promises() -> None:
    assert all(hasattr(lycoris_algos, name) for name in lycoris_algos.__all__)
    assert not hasattr(lycoris_algos, "nonsense")
