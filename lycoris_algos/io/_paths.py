"""Opens files for this folder, and puts the name of the file into every error.

Every public function of this folder that takes a path names the file in its errors, exactly once;
the functions that take bytes or a handle do not. ComfyUI users see these messages, so an
``OSError`` is turned into a sentence here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO

from ..errors import FileFormatError, LycorisError
from ..text import quoted


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Puts "file 'NAME'" before any LycorisError of the block, and makes OSErrors LycorisErrors."""
    try:
        yield
    except LycorisError as error:
        raise error.with_context(f"file {quoted(path.name)}") from error.__cause__
    except OSError as error:
        raise FileFormatError(f"file {quoted(path.name)}: {explain_os_error(error)}") from error


def open_regular(path: Path) -> FileIO:
    """Opens a regular file for unbuffered reading.

    Raises FileFormatError for anything else: reading a named pipe or a device would never end.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FileFormatError("this is a folder, not a file")
        if not stat.S_ISREG(mode):
            raise FileFormatError("this is a device or a pipe, not a regular file")
        return path.open("rb", buffering=0)
    except ValueError as error:  # a zero byte inside the path
        raise FileFormatError("this is not a possible file name") from error


def size_of(handle: IO[bytes]) -> int:
    """Size in bytes of an open file."""
    return os.fstat(handle.fileno()).st_size


def explain_os_error(error: OSError) -> str:
    """A sentence for a person about an operation that the system refused."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file (or its folder is missing)"
    if isinstance(error, PermissionError):
        return "no permission to use this file: check its access rights, or who has it open"
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return "a folder stands where a file should be, or a file where a folder should be"
    return f"the system reports: {error.strerror or error}"
