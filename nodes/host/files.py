"""Loaded adapter files, kept while they are used and while memory allows.

ComfyUI runs a node again whenever an input of it changes, and several nodes may name the same file, so a
file is read once per content: the key is (path, modification time, size). The bound is on bytes; what is
dropped here lives on in the models that it patches.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from ...lycoris_algos import AdapterSet, load
from .paths import adapter_path, fingerprint

_MAX_BYTES = 1 << 30
_cache: OrderedDict[tuple[str, int, int], AdapterSet] = OrderedDict()
_lock = threading.Lock()


def load_adapters(name: str) -> AdapterSet:
    """The adapter set of the listed file ``name``. Raises FileNotFoundError or a LycorisError."""
    path = adapter_path(name)
    key = fingerprint(path)
    with _lock:
        found = _cache.get(key)
        if found is not None:
            _cache.move_to_end(key)
            return found
    adapters = load(path)
    with _lock:
        _cache[key] = adapters
        _shrink()
    return adapters


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


def _shrink() -> None:
    """Drops the least recently used files beyond the bound; the newest always stays."""
    total = sum(adapters.size_bytes for adapters in _cache.values())
    while total > _MAX_BYTES and len(_cache) > 1:
        _, dropped = _cache.popitem(last=False)
        total -= dropped.size_bytes
