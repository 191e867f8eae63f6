"""Reads tables that strangers wrote as JSON: every name once, only texts that can be written again."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from ..errors import FileFormatError
from ..text import quoted


def parse_table(raw: bytes, what: str, advice: str) -> dict[str, Any]:
    """The JSON object ``raw``. Raises FileFormatError, which calls it ``what`` and ends in ``advice``."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            # Programs disagree about which of the two counts, so neither is taken.
            counts = Counter(name for name, _ in pairs)
            raise FileFormatError(f"{what} names {quoted(counts.most_common(1)[0][0])} twice: {advice}")
        return table

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{what} is not UTF-8 text: {advice}") from error
    except RecursionError as error:
        raise FileFormatError(f"{what} is nested too deeply: {advice}") from error
    except ValueError as error:
        raise FileFormatError(f"{what} is not JSON: {advice}") from error
    if not isinstance(parsed, dict):
        raise FileFormatError(f"{what} is not a JSON object: {advice}")
    if b"\\ud" in raw.lower():
        _check_texts(parsed, what, advice)
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_texts(value: object, what: str, advice: str, name: str | None = None) -> None:
    """Refuses broken texts in ``value``, which is found under ``name``, or is a name itself."""
    # JSON can spell half a surrogate pair, which is no text and could never be written again.
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_texts(key, what, advice)
            _check_texts(inner, what, advice, key)
    elif isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            where = f"the name {quoted(value)}" if name is None else f"what is under {quoted(name)}"
            raise FileFormatError(f"{what} holds a broken character in {where}: {advice}") from error
