"""Loaded adapter files, kept while they are used and while memory allows.

ComfyUI runs a node again whenever an input of it changes, and several nodes may name the same file, so a
file is read once per content. Of a file that is replaced again and again, as a training does it, only the
newest version is kept. What is dropped here lives on in the models that it patches.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from ...lycoris_algos import AdapterSet, load
from .paths import adapter_path, fingerprint

#: Path, modification time and size.
_Content = tuple[str, int, int]


class LoadedFiles:
    """Adapter sets of files as they are now, at most ``most`` bytes of them; the newest always stays."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[_Content, AdapterSet]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, name: str) -> AdapterSet:
        """The adapter set of the listed file ``name``. Raises FileNotFoundError or a LycorisError."""
        path = adapter_path(name)
        key, content = str(path), fingerprint(path)
        with self._lock:
            kept, adapters = self._kept.get(key, (None, None))
            if adapters is not None and kept == content:
                self._kept.move_to_end(key)
                return adapters
            self._kept.pop(key, None)  # an earlier version: freed before the new one is read
        del adapters
        adapters = load(path)
        with self._lock:
            self._kept[key] = content, adapters
            self._kept.move_to_end(key)
            self._shrink()
        return adapters

    @property
    def kept(self) -> list[AdapterSet]:
        """What is kept now, the oldest first."""
        with self._lock:
            return [adapters for _, adapters in self._kept.values()]

    def _shrink(self) -> None:
        total = sum(adapters.size_bytes for _, adapters in self._kept.values())
        while total > self._most and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            total -= dropped.size_bytes


LOADED = LoadedFiles(1 << 30)
load_adapters = LOADED.load


def file_fingerprint(name: str) -> str:
    """What ComfyUI compares to see whether a node must run again; never raises."""
    try:
        return repr(fingerprint(adapter_path(name)))
    except OSError:
        return f"missing: {name}"


def check_name(name: str) -> bool | str:
    """True, or why ``name`` cannot be loaded, for a node's validation before anything runs."""
    try:
        adapter_path(name)
    except FileNotFoundError as error:
        return str(error)
    return True
