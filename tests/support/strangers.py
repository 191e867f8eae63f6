"""Names as a stranger may choose them for layers, tensors and files, and what no text may hold of them."""

from __future__ import annotations

import unicodedata

#: By what they try.
NAMES = {
    "element": '<img src=x onerror="window.__ran=1"> &lt;script&gt;',
    "link": "[[[click|javascript:alert(1)]]] ____LNKLNK0__",
    "address": "see https://example.org and WWW.example.org",
    "line": "zz\n99 of 99 layers applied\r99 of 99\u2028\x8599 of 99",
    "escape": "a\x1b[2J\x1b]0;title\x07\x9b31m\x7f\x00",
    "direction": "a\u202egnp.\u2066x\u200f\u200b\ufeff",
    "long": "k" * 200_000,
}
_FORBIDDEN = ("<", ">", "&", "[[", "]]", "__LNK", "://example", "WWW.example")
_LONGEST = 20_000


def problems(text: str) -> list[str]:
    """What is wrong with a text for people that holds strangers' names."""
    found = [repr(part) for part in _FORBIDDEN if part in text]
    characters = set(text) - {"\n"}
    found += sorted(f"U+{ord(c):04X}" for c in characters if unicodedata.category(c)[0] == "C")
    found += [f"U+{ord(c):04X}" for c in ("\u2028", "\u2029") if c in text]
    found += [f"a line of its own: {line[:40]!r}" for line in text.split("\n") if line.startswith("99 of 99")]
    return found if len(text) <= _LONGEST else [*found, f"{len(text)} characters"]
