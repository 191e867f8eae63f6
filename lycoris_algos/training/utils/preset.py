"""Preset files: TOML tables with the keys of ``config_sdk.VALID_PRESET_KEYS``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from ...errors import FileFormatError
from ...text import quoted
from ..config_sdk import PresetConfig


def read_preset(preset_path: str | Path) -> dict[str, Any]:
    """The preset of a file. Raises FileFormatError, PresetValidationError for one that cannot be used."""
    path = Path(preset_path)
    if sys.version_info < (3, 11):
        raise FileFormatError(
            f"the preset {quoted(path.name)} is TOML, which Python reads from 3.11 on: "
            "use a newer Python, or hand the preset over as a dict (LycorisNetwork.apply_preset)"
        )
    tomllib: Any = importlib.import_module("tomllib")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(
            f"the preset {quoted(path.name)} cannot be read: {quoted(str(error))}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"the preset {quoted(path.name)} is no TOML: {quoted(str(error))}") from error
    return PresetConfig.from_dict(table).to_dict()
