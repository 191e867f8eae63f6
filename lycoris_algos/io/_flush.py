"""Brings a growing file to the disk while more of it is being made.

Otherwise the system collects all of it in memory, and the final ``fsync`` waits for gigabytes while the
processor has nothing to do. A thread of its own asks for what is there now and then.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

_fdatasync: Callable[[int], None] | None = getattr(os, "fdatasync", None)
_PAUSE_S = 0.3


class Flusher:
    """Flushes an open file now and then, until ``finish`` or ``abandon``; it must stay open until then."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="flush", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Ends it. Raises the OSError that the system answered, which it tells only once."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Ends it, whatever went wrong."""
        with contextlib.suppress(OSError):
            self.finish()

    def _run(self) -> None:
        while _fdatasync is not None and not self._stop.wait(_PAUSE_S):
            try:
                _fdatasync(self._descriptor)
            except OSError as error:
                self._error = error
                return
