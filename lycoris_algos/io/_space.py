"""What it means that a folder takes no file, in words: no space, no right, no such folder."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import LycorisError
from ..text import human_size, quoted, size_pair
from ._paths import explain_os_error, naming_file

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def require_space(folder: Path, size: int) -> None:
    """OSError if ``folder`` has no room for ``size`` bytes."""
    usage = shutil.disk_usage(folder)
    # Some network file systems report nothing at all; then only trying tells.
    if usage.total and usage.free < size:
        raise OSError(errno.ENOSPC, "")


@contextlib.contextmanager
def explaining_writes(path: Path, size: int) -> Iterator[None]:
    """Makes OSErrors of the block, which writes ``path`` of ``size`` bytes, LycorisErrors that name it."""
    with naming_file(path):
        try:
            yield
        except OSError as error:
            raise LycorisError(_explain(error, path.parent, size)) from error


def _explain(error: OSError, folder: Path, size: int) -> str:
    if error.errno in _NO_SPACE:
        needed, there = size_pair(size, _free_space(folder))
        return (
            f"no space left in folder {quoted(str(folder))}: the file needs {needed}, there is {there}. "
            "Nothing was written: make room, or save to another disk"
        )
    if error.errno == errno.EFBIG:
        return (
            f"a file of {human_size(size)} is larger than this disk or account may hold: save to another disk"
        )
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long: choose a shorter one"
    if isinstance(error, FileNotFoundError):
        return f"there is no folder {quoted(str(folder))}"
    return f"it could not be written in folder {quoted(str(folder))}: {explain_os_error(error)}"


def _free_space(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
