"""Bytes from one open file to another without passing through this program, where the system can do that.

On Linux the kernel copies (or, on file systems that share blocks, only notes that both files have them). The
first refusal, which is all the answer that other systems give, falls back to reading and writing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from io import FileIO

# copy_file_range(source, target, count, offset in the source): at the target's own position.
_in_kernel: Callable[..., int] | None = getattr(os, "copy_file_range", None)
Read = Callable[[memoryview, int], int]
_BUFFER = 1 << 20
# What systems answer that cannot do this at all, or not between these two files.
_REFUSALS = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
    errno.EBADF,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ETXTBSY,
    errno.EIO,
}
# One call is kept so short that a caller can be stopped between two.
_CALL = 256 << 20


def copy_bytes(source: FileIO, start: int, count: int, target: FileIO, read: Read) -> int:
    """Appends ``count`` bytes of ``source`` from ``start`` on to ``target``, at its own position.

    ``read(into, position)`` is how to read from it otherwise. Answers how many were copied: less than
    ``count`` only where ``source`` ends. Raises OSError.
    """
    done = 0
    if _in_kernel is not None:
        try:
            while done < count:
                size = min(_CALL, count - done)
                copied = _in_kernel(source.fileno(), target.fileno(), size, start + done)
                if not copied:
                    break  # the end, or a file system that answers 0 for what it cannot do
                done += copied
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
    return done + _copy_by_hand(read, start + done, count - done, target)


def _copy_by_hand(read: Read, start: int, count: int, target: FileIO) -> int:
    buffer = memoryview(bytearray(min(_BUFFER, count)))
    done = 0
    while done < count:
        part = buffer[: count - done]
        size = read(part, start + done)
        if not size:
            break
        written = 0
        while written < size:
            written += target.write(part[written:size])
        done += size
    return done
