"""Tests in a fork of the process that has collected them: once to see what they run, then with one mistake.

A fork starts with everything imported, so a mistake within a function costs nothing but the tests: the
function's code is replaced. A mistake in what runs on import is tried on modules that the fork imports anew.
Needs ``os.fork``, which Windows does not have (its WSL does).
"""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import itertools
import json
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType

import pytest
from lab.paths import REPO

from .edits import Edit

#: Rooms of the library that hold the maths, the lowest first.
ROOMS = ("ops", "structures", "adapters")
#: The tests that are tried: those of these rooms and of the rooms that use them most.
TESTS = tuple(f"tests/unit/{room}" for room in (*ROOMS, "network", "merge"))
#: How many seconds of tests a mutant must survive.
SECONDS = 15.0
QUIET = ("-q", "-s", "--tb=no", "--no-header", "-p", "no:cacheprovider")
# How much more processor time than without a mistake tests may take, and what importing them anew takes.
_SLOWER, _START = 4.0, 60.0
# What a fork may take at most: a mistake in a shape must not take the machine's memory.
_MEMORY = 16 << 30
# The code of a fork whose work raised something.
_RAISED = 99
#: A function by its file (from the repository) and its first line.
Function = tuple[str, int]


class Outcome(str, Enum):
    """What became of a mutant."""

    CAUGHT = "caught"
    TOO_SLOW = "caught by time"
    SURVIVED = "survived"


@dataclass(frozen=True)
class Mutant:
    """A mistake in the file ``path`` (from the repository), the ``number``-th of those that it can have."""

    path: str
    number: int
    edit: Edit


@dataclass(frozen=True)
class Seen:
    """A test: how long it took, and the functions that it ran."""

    name: str
    seconds: float
    ran: frozenset[Function]


def chosen(tests: Sequence[Seen], path: str, function: int | None) -> list[Seen]:
    """The tests for a mistake in ``function`` of the file ``path``, for ``SECONDS`` at most.

    They run the function; or, for what runs on import alone, anything of the file, or anything. One of each
    test function comes first, whatever its parameters, then a second one of each, and so on; of these, those
    of its own room that run little else, and therefore are about it.
    """
    own = [test for test in tests if (path, function) in test.ran]
    own = own or [test for test in tests if any(file == path for file, _ in test.ran)] or list(tests)
    room = f"tests/unit/{Path(path).parts[1]}/"
    before: Counter[str] = Counter()
    turns: dict[Seen, int] = {}
    for test in random.Random(path).sample(own, len(own)):
        name = test.name.partition("[")[0]
        turns[test] = before[name]
        before[name] += 1
    own.sort(key=lambda test: (turns[test], not test.name.startswith(room), len(test.ran), test.name))
    spent = itertools.accumulate(test.seconds for test in own)
    return [test for test, until in zip(own, spent, strict=True) if until <= SECONDS]


class Forks:
    """Runs work in forks of this process, ``count`` at a time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._then: dict[int, Callable[[int], None]] = {}

    def start(self, work: Callable[[], int], then: Callable[[int], object], seconds: float = 3600.0) -> None:
        """``work``, which answers a code below 99, in a fork; ``then`` is given that, or −signal.

        A fork that takes more ``seconds`` of processor time is ended by SIGXCPU. What ``work`` raises is
        printed, and raises RuntimeError here.
        """
        if len(self._then) == self._count:
            self._wait()
        process = os.fork()
        if process:
            self._then[process] = then
            return
        code, terminal = _RAISED, os.dup(2)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 10))
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            code = work()
        except BaseException:
            os.write(terminal, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def finish(self) -> None:
        """Waits for all of them."""
        while self._then:
            self._wait()

    def _wait(self) -> None:
        process, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        if code in (_RAISED, -signal.SIGKILL):
            raise RuntimeError("a fork of this process failed, as printed above, or was killed from outside")
        self._then.pop(process)(code)


# ---- what tests run -------------------------------------------------------------------------------------


def observe(items: Sequence[pytest.Item], file: Path) -> int:
    """Runs ``items`` and writes what was seen to ``file``; answers 0. Raises RuntimeError if one fails."""
    codes: set[CodeType] = set()
    watched = tuple(f"{REPO / 'lycoris_algos' / room}{os.sep}" for room in ROOMS)

    def trace(frame: FrameType, event: str, argument: object) -> None:
        codes.add(frame.f_code)

    seen: list[tuple[str, float, list[Function]]] = []
    for item in items:
        codes.clear()
        sys.settrace(trace)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        passed = _passes(item)
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        sys.settrace(None)
        if not passed:
            raise RuntimeError(f"{item.nodeid} must pass before mistakes can be tried on it")
        own = [code for code in codes if code.co_filename.startswith(watched)]
        ran = [(Path(code.co_filename).relative_to(REPO).as_posix(), code.co_firstlineno) for code in own]
        seen.append((item.nodeid, seconds, ran))
    file.write_text(json.dumps(seen), "utf-8")
    return 0


def read_observed(file: Path) -> list[Seen]:
    """What ``observe`` wrote."""
    return [
        Seen(name, seconds, frozenset((path, line) for path, line in ran))
        for name, seconds, ran in json.loads(file.read_text("utf-8"))
    ]


# ---- with a mistake -------------------------------------------------------------------------------------


class Trials:
    """What tries mutants on collected tests."""

    def __init__(self, items: Sequence[pytest.Item], tests: Sequence[Seen], forks: Forks) -> None:
        self._items = {item.nodeid: item for item in items}
        self._tests = tests
        self._ran = frozenset().union(*(test.ran for test in tests))
        self._forks = forks
        self._functions: dict[Function, list[FunctionType]] = defaultdict(list)
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__.co_filename.startswith(str(REPO)):
                code = each.__code__
                path = Path(code.co_filename).relative_to(REPO).as_posix()
                self._functions[path, code.co_firstlineno].append(each)

    def control(self, path: str) -> None:
        """Raises RuntimeError, by ``Forks``, if the tests for the file ``path`` fail with it as it is."""

        def work() -> int:
            names = [test.name for test in chosen(self._tests, path, None)]
            code = compile((REPO / path).read_text("utf-8"), str(REPO / path), "exec", dont_inherit=True)
            if _on_new_modules(path, code, names):
                raise RuntimeError(f"the tests for {path} fail without a mistake when they run in this order")
            return 0

        self._forks.start(work, int)

    def start(self, mutant: Mutant, then: Callable[[Outcome], None]) -> None:
        """Tries ``mutant`` on the tests for it."""
        tests = chosen(self._tests, mutant.path, mutant.edit.function)
        limit = _START + _SLOWER * sum(test.seconds for test in tests)
        self._forks.start(lambda: self._tried(mutant, tests), lambda code: then(_outcome(code)), limit)

    def _tried(self, mutant: Mutant, tests: Sequence[Seen]) -> int:
        code = mutant.edit.compiled(str(REPO / mutant.path))
        names = [test.name for test in tests]
        if (mutant.path, mutant.edit.function) not in self._ran or not self._replaced(mutant, code):
            return _on_new_modules(mutant.path, code, names)
        return int(not all(_passes(self._items[name]) for name in names))

    def _replaced(self, mutant: Mutant, module: CodeType) -> bool:
        """Whether functions of ``mutant`` are there, and now have their code of ``module``."""
        found = False
        for code in _codes(module):
            for function in self._functions[mutant.path, code.co_firstlineno]:
                if function.__code__.co_name == code.co_name:
                    if len(function.__code__.co_freevars) != len(code.co_freevars):
                        return False
                    function.__code__ = code
                    found |= code.co_firstlineno == mutant.edit.function
        return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _outcome(code: int) -> Outcome:
    if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return Outcome.SURVIVED
    return Outcome.TOO_SLOW if code == -signal.SIGXCPU else Outcome.CAUGHT


class _Failures:
    """Notes whether a test failed."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed


def _passes(item: pytest.Item) -> bool:
    failures = _Failures()
    item.config.pluginmanager.register(failures)
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    item.config.pluginmanager.unregister(failures)
    return not failures.failed


def _on_new_modules(path: str, code: CodeType, names: Sequence[str]) -> int:
    """Runs tests after all of the library and the tests was imported anew, the file ``path`` as ``code``."""

    class Only:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            found = {item.nodeid: item for item in items}
            items[:] = [found[name] for name in names if name in found]

    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith((str(REPO / "lycoris_algos"), str(REPO / "tests"))) and "mutants" not in name:
            del sys.modules[name]
    sys.meta_path.insert(0, _Instead(path, code))
    files = dict.fromkeys(name.partition("::")[0] for name in names)
    return int(pytest.main([*QUIET, "-x", *files], plugins=[Only()]))


class _Instead(importlib.machinery.SourceFileLoader):
    """Finds one module of the library and loads it from other code than its file's."""

    def __init__(self, path: str, code: CodeType) -> None:
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(name, str(REPO / path))
        self._code = code

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return self._code
