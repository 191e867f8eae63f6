"""Arguments of ComfyUI's model classes that one host asks for and another refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_ASKED: Mapping[str, Any] = {
    "meanflow_sum": False,
    "txt_ids_dims": [],
    "use_sequential_txt_ids": False,
    "use_x0": False,
    "vec_in_dim": None,
}


def called(make: Callable[[dict[str, Any]], T], arguments: Mapping[str, Any]) -> T:
    """``make`` of ``arguments`` and what else this host asks for, as the TypeError that it raises says."""
    given = dict(arguments)
    while True:
        try:
            return make(dict(given))
        except TypeError as error:
            asked = re.findall(r"'(\w+)'", str(error).partition("required positional argument")[2])
            more = {name: _ASKED[name] for name in asked if name in _ASKED and name not in given}
            if not more:
                raise
            given.update(more)
