"""Names for files out of strangers' texts: possible on every system, and nothing but a name."""

from __future__ import annotations

import unicodedata

_FORBIDDEN = frozenset('<>:"/\\|?*')
# Names of devices on Windows, whatever follows after a dot; it takes ¹, ² and ³ for digits.
_PORTS = (f"{device}{digit}" for device in ("com", "lpt") for digit in "0123456789¹²³")
_RESERVED = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$", "clock$", *_PORTS})
# File systems take 255 bytes (or as many pairs of bytes), and a counter, the suffix and what marks an
# unfinished file come to a name.
_MAX_PART = 120
_MAX_BYTES = 200


def possible_name(text: str) -> str:
    """``text`` with nothing in it that a file system takes for more than a name; "" if nothing is left."""
    kept = "".join(
        c for c in text[: 2 * _MAX_PART] if c not in _FORBIDDEN and unicodedata.category(c)[0] != "C"
    )
    kept = kept[:_MAX_PART].encode()[:_MAX_BYTES].decode(errors="ignore").strip(" .")
    return f"_{kept}" if kept.split(".")[0].rstrip().lower() in _RESERVED else kept
