"""The door for strangers' text: what it lets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangers import NAMES, problems

from lycoris_algos import LycorisError
from lycoris_algos.text import bounded, capped, listed, plain_line, quoted, single_line


@pytest.mark.parametrize("name", [*NAMES.values(), "a\ud800b"], ids=[*NAMES, "surrogate"])
def test_a_name_is_one_harmless_short_line(name: str) -> None:
    shown = single_line(name)
    assert problems(shown) == []
    assert "\n" not in shown
    assert 0 < len(shown) <= 120
    assert not {'"', "'"} & set(shown)


@given(st.text())
def test_a_name_that_has_come_through_is_not_changed_again(name: str) -> None:
    shown = single_line(name)
    assert problems(shown) == []
    assert single_line(shown) == shown
    assert bounded(shown) == shown
    assert bounded(quoted(name)) == quoted(name)


@given(st.text(), st.integers(2, 50))
def test_a_line_is_never_longer_than_its_limit(text: str, limit: int) -> None:
    assert len(single_line(text, limit)) <= limit
    assert len(plain_line(text, limit)) <= limit


def test_an_ordinary_name_stays_as_it_is() -> None:
    for name in (
        "lora_unet_down_blocks_0",
        "transformer.blocks.0.attn.to_q",
        "日本語 LoRA v1.2 (final) [a]",
        "é·ü",
    ):
        assert single_line(name) == name
        assert quoted(name) == f"'{name}'"


def test_words_of_a_prompt_keep_what_can_be_seen() -> None:
    assert plain_line(">_<,  black & white\n[[x]] o'neill", 80) == ">_<, black & white [[x]] o'neill"


def test_our_own_line_breaks_and_quotes_stay_in_a_message() -> None:
    assert bounded("file 'a':\n  - one\n  - two") == "file 'a':\n  - one\n  - two"
    assert bounded("a\x1b[1mb\tc\r\nd<e") == "a[1mb c \nd‹e"


def test_a_message_says_how_much_of_it_is_left_out() -> None:
    shown = str(LycorisError("x" * 50_000))
    assert len(shown) < 6_100
    assert shown.endswith(" … and 44,000 more characters")
    assert str(LycorisError(shown).with_context("file 'a'")) == f"file 'a': {shown}"


def test_lists_say_how_many_more_there_are() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([f"n{i}" for i in range(30)], 2, quoted) == "'n0', 'n1' and 28 more"
    assert capped(["a", "b"], 2) == ["a", "b"]
    assert capped(["a", "b", "c"], 2) == ["a", "b", "… and 1 more"]
