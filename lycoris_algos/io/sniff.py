"""What a file is, told from its first bytes.

The suffix is what somebody typed; the content is what is there. Most "corrupt" model files are
sound files of another kind (the web page of a download that needed a login, a Git LFS pointer, a
renamed checkpoint), so this module names what it sees and what to do about it.
"""

from __future__ import annotations

import enum
import string

from ..text import quoted

#: How many bytes ``kind_of`` and ``explain`` want to see.
SNIFF_BYTES = 512

#: Longest header that the official library accepts, in bytes.
MAX_HEADER_BYTES = 100_000_000

_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_PRINTABLE = frozenset(string.printable.encode())


class FileKind(enum.Enum):
    """The kinds of file that are read."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "PyTorch zip"
    TORCH_PICKLE = "PyTorch pickle"


def kind_of(first: bytes) -> FileKind | None:
    """The kind of a file that begins with ``first`` (its first 512 bytes, fewer if it is short).

    None means: nothing that can be read; ``explain`` then says what it is.
    """
    # Safetensors goes before pickle: a header length of 0x0280 looks like the start of a pickle.
    if _begins_like_safetensors(first):
        return FileKind.SAFETENSORS
    if first.startswith(_ZIP):
        return FileKind.TORCH_ZIP
    if len(first) > 2 and first[0] == 0x80 and 1 <= first[1] <= 5:
        return FileKind.TORCH_PICKLE
    return None


def explain(first: bytes) -> str:
    """Why a file that begins with ``first`` is no safetensors file, and what to do about it."""
    again = "download it again"
    if not first:
        return f"the file is empty (0 bytes): {again}"
    if len(first) == SNIFF_BYTES and not any(first):
        return f"the file begins with zeros only, as an unfinished download does: {again}"
    if first.startswith(b"version https://git-lfs"):
        return (
            "this is a Git LFS pointer, a small text that stands for the real file: "
            "run 'git lfs pull', or download the file itself"
        )
    if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return (
            "this is a web page, not a model file: the download link leads to a page, or needs a "
            f"login; {again} through the site's own download button"
        )
    if first.startswith(_ZIP) or kind_of(first) is FileKind.TORCH_PICKLE:
        return (
            "this is a PyTorch file (pickle) or a zip archive, not safetensors: load it in ComfyUI and "
            "save it again with Save Checkpoint, or unpack the archive"
        )
    if first.startswith(b"GGUF"):
        return "this is a GGUF file, not safetensors: use the safetensors version of it"
    if first.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")):
        return f"this is a picture, not a model file: {again}"
    if first.startswith(b"{") and b'"weight_map"' in first:
        return (
            "this is the index of a model that is cut into several files, and models are read from one file: "
            "load it in ComfyUI and save it again"
        )
    if all(byte in _PRINTABLE for byte in first):
        begins = quoted(first.decode("ascii"), 60)
        return f"this is a text file (it begins {begins}), not a model file: {again}"
    return f"this is not a safetensors file, or its beginning is damaged: {again}"


def _begins_like_safetensors(first: bytes) -> bool:
    length = int.from_bytes(first[:8], "little")
    return len(first) > 8 and length <= MAX_HEADER_BYTES and first[8:9] == b"{"
