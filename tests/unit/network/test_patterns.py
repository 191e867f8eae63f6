"""PEFT's patterns: the same answers as its own rule by Python's ``re``, and a bound on the time."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lycoris_algos import BadValueError
from lycoris_algos.network.patterns import Patterns


def by_peft(table: Mapping[str, float], name: str) -> float | None:
    """``peft.utils.get_pattern_key``, and the value that it means."""
    return next((v for p, v in table.items() if re.match(rf"(.*\.)?({p})$", name)), None)


NAMES = [
    "to_q",
    "attn.to_q",
    "blocks.1.attn.to_q",
    "blocks.11.attn.to_k",
    "b",
    "a.b",
    "axb",
    "a.b.a.b",
    "",
    ".",
]
PATTERNS = [
    "to_q",
    "^to_q",
    "attn.to_q",
    "a.b",
    r"a\.b",
    "^a.b$",
    r"blocks\.\d+\.attn\..*",
    r"blocks\.[1-9]\..*",
    "to_k|to_q",
    "(to_k|to_v)",
    r".*\.(to_q|to_k)",
    "(?:a|ab)*",
    "(?P<x>a.)+b",
    "a{2}|b{1,2}|x{,3}|y{0,}|z{,}",
    "[^.]+",
    "[]a.]+",
    r"[\w-]*?",
    r"[a-c.]*",
    "()*",
    "",
    "a||b",
    "{}",
    "a{b}",
    r"\Ablocks.*\Z",
    ".+",
    "b]",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_it_means_to_peft(pattern: str) -> None:
    for name in NAMES:
        assert Patterns({pattern: 2.0}).first(name) == by_peft({pattern: 2.0}, name), name


def test_the_first_pattern_that_matches_counts() -> None:
    ordered = {pattern: float(place) for place, pattern in enumerate(PATTERNS)}
    for table in (ordered, dict(reversed(ordered.items()))):
        for name in NAMES:
            assert Patterns(table).first(name) == by_peft(table, name), name


def test_of_several_names_the_one_with_the_first_pattern_counts() -> None:
    found = Patterns({"to_q": 1.0, "unet.blocks.to_k": 2.0, "to_k": 3.0})
    assert found.first("unet.blocks.to_k", "blocks.to_k") == 2.0
    assert found.first("blocks.to_k", "k") == 3.0
    assert found.first("to_v", "v") is None


_ATOMS = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", r"\d", "1", "^", "$"])


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "*?", "{2}", "{0,2}", "{1,}"])
    groups = inner.map("({})".format)
    return (
        st.lists(inner, max_size=4).map("".join)
        | st.lists(inner, min_size=1, max_size=3).map("|".join).map("({})".format)
        | st.tuples(groups | st.sampled_from(["a", ".", "[ab]", r"\d"]), repeats).map("".join)
    )


@given(st.recursive(_ATOMS, _joined, max_leaves=8), st.text("ab1.", max_size=8))
def test_any_expression_means_what_it_means_to_peft(pattern: str, name: str) -> None:
    assert Patterns({pattern: 1.0}).first(name) == by_peft({pattern: 1.0}, name)


REFUSED = (
    *("(a", "a)", "[", "[a", "*", "a**", "a{9}{9}", "[b-a]", "a\\", r"\q"),
    *("(" * 490 + "a" + ")" * 490, "a|" * 600),
)


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_is_no_expression_or_too_long_is_refused(pattern: str) -> None:
    with pytest.raises(BadValueError, match="chooses layers by"):
        Patterns({pattern: 1.0}).first("a")


def test_an_unreadable_pattern_is_no_matter_until_it_is_asked() -> None:
    Patterns({"(": 1.0})


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(aa|a)" * 24 + "c", "a" * 60 + "b"),
        ("(a+)+c", "a" * 500 + "b"),
        ("(a*)*" * 50 + "c", "a" * 900),
        ("((((a*)*)*)*)*c", "a" * 900),
        ("(.*.*.*)*c", "ab" * 400),
        ("a{0,999}" * 100 + "c", "a" * 900),
        ("a{1000000}" * 100, "a" * 900),
        ("(|||||||||)" * 90, "a"),
        ("()" * 400 + "x", "a"),
        ("(" + "|".join("a" * 450) + ")b", "a" * 900),
        ("a?" * 490, "a" * 900),
        ("a|" * 100_000, "a"),
    ],
)
def test_no_expression_keeps_the_reader_busy(pattern: str, name: str) -> None:
    found = Patterns({pattern: 1.0})
    start = time.process_time()
    with contextlib.suppress(BadValueError):
        assert found.first(name) in (None, 1.0)
    assert time.process_time() - start < 6


def test_expressions_on_names_without_end_are_refused() -> None:
    with pytest.raises(BadValueError, match="too long"):
        Patterns({"a*b": 1.0}).first("a" * 5000)


def test_a_pattern_for_each_of_many_layers_is_no_work() -> None:
    names = [f"blocks.{i}.attn.{kind}" for i in range(2000) for kind in ("to_q", "to_k", "to_out.0")]
    for form in ("{}", "^{}", "{}$", "model.{}"):
        own = names if form == "{}" else map(re.escape, names)
        table = {form.format(name): float(place) for place, name in enumerate(own)}
        found = Patterns(table)
        start = time.process_time()
        answers = [found.first(name if form != "model.{}" else f"model.{name}") for name in names]
        assert time.process_time() - start < 3
        assert answers == list(map(float, range(len(names))))


def test_patterns_and_layers_that_are_too_many_together_are_refused() -> None:
    table = {f"{'a' * (i % 500)}.{'b' * (i // 500)}": 1.0 for i in range(50_000)}
    found = Patterns(table)
    start = time.process_time()
    with pytest.raises(BadValueError, match="too long to try"):
        _ = [found.first("x." * 500 + str(i)) for i in range(100_000)]
    assert time.process_time() - start < 10
