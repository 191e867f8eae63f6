"""What only PEFT's configuration says about a file: adapter_config.json beside it, or in its metadata.

PEFT stores factors alone. Alpha, √rank, which rotation an OFT's triangles stand for and how far it may turn
are in the configuration, for all layers or by patterns of names. Here they become what other files store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..adapters import LayerAdapter
from ..errors import BadValueError, LycorisError
from ..text import Brief, quoted
from .patterns import Patterns

_PREFIX = "base_model.model."
_LARGEST = 1e300
_DIGITS = 400


@dataclass(frozen=True)
class PeftConfig(Brief):
    """The configuration of a whole file: {name: value}, its tables of patterns as ``Patterns``."""

    values: Mapping[str, object]

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> PeftConfig:
        """The one that a file's metadata hold, under diffusers' key or PEFT's own file name.

        Raises BadValueError for a pattern's number that no training uses.
        """
        table = json_table(metadata.get("lora_adapter_metadata")) or json_table(
            metadata.get("adapter_config")
        )
        return cls(
            {
                key: _patterns(key, value) if key.endswith("_pattern") else value
                for key, value in table.items()
            }
        )


def as_peft_trained(name: str, layer: LayerAdapter, config: PeftConfig) -> tuple[LayerAdapter, str]:
    """(``layer`` as PEFT trained it, what was done about it or ""), by the ``config`` of its file.

    Raises BadValueError for what the configuration says and no tensor of the file can mean.
    """
    if layer.algorithm is None:
        return layer, ""
    try:
        reading = layer.algorithm.from_peft(_OfLayer(name, config.values))
    except LycorisError as error:
        raise error.with_context(f"layer {quoted(name)}") from error
    return replace(layer, algorithm=reading.algorithm), reading.note


def json_table(text: str | None) -> dict[str, object]:
    """The JSON object that ``text`` is; empty for anything else."""
    try:
        table = json.loads(text, parse_int=_whole) if text else {}
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


@dataclass(frozen=True)
class _OfLayer:
    """The configuration as it applies to one layer: ``PeftSettings``."""

    name: str
    values: Mapping[str, object]

    def __getitem__(self, key: str) -> object:
        component = self.name.partition(".")[0]  # diffusers has one configuration for each
        return self.values.get(f"{component}.{key}", self.values.get(key))

    def number(self, *keys: str) -> float | None:
        """The first of ``keys`` that is a number. Raises BadValueError for one that no training uses."""
        numbers = (_number(key, self[key]) for key in keys)
        return next((value for value in numbers if value is not None), None)

    def of_layer(self, patterns: str, *keys: str) -> float | None:
        """PEFT's rule: the first of ``patterns`` that the end of the layer's path matches, else ``keys``."""
        table = self[patterns]
        value = None
        if isinstance(table, Patterns):
            # PEFT's names begin inside the model that was wrapped; diffusers puts the component before them.
            inside = self.name.partition(".")[2]
            value = table.first(self.name.removeprefix(_PREFIX), inside.removeprefix(_PREFIX))
        return self.number(*keys) if value is None else value

    def is_of(self, kind: str) -> bool:
        """Whether PEFT trained it, as ``kind``; others store the same tensors and mean another thing."""
        return self["peft_type"] == kind or self.name.startswith(_PREFIX)

    def is_older_than(self, major: int, minor: int) -> bool:
        """Whether a PEFT before that version wrote it. None before 0.18 says which it is."""
        if self["peft_type"] is None:
            return False  # there is no configuration that could say it
        version = re.match(r"(\d{1,9})\.(\d{1,9})", str(self["peft_version"]))
        return version is None or (int(version[1]), int(version[2])) < (major, minor)


def _whole(digits: str) -> float:
    """A whole number of JSON; Python refuses to read those of thousands of digits."""
    return int(digits) if len(digits) < _DIGITS else float(digits)


def _number(key: str, value: object) -> float | None:
    """``value`` if it is a number; BadValueError, naming ``key``, if it is one that no training uses."""
    if not isinstance(value, int | float):
        return None
    if not -_LARGEST < value < _LARGEST:
        raise BadValueError(
            f"PEFT's configuration has a number under {quoted(key)} that no training uses: "
            "the configuration is damaged, or the file is"
        )
    return float(value)


def _patterns(key: str, table: object) -> Patterns:
    items = table.items() if isinstance(table, dict) else ()
    numbers = {pattern: _number(key, value) for pattern, value in items}
    return Patterns({pattern: value for pattern, value in numbers.items() if value is not None})
