"""Every error that this library raises on purpose.

One rule decides the wording: the reader is a person at a graph, not a programmer. A message says what
is wrong, in which file and layer, and what to do about it; the class says which kind of trouble it is,
so that a caller can react without parsing text. Context (file, layer) is added by whoever knows it,
through ``with_context``, so that the functions below need not carry file names around.
"""

from __future__ import annotations

from typing import TypeVar

from .text import bounded

_E = TypeVar("_E", bound="LycorisError")


class LycorisError(Exception):
    """Base of all errors of this library. Whatever got into ``message``, it is kept bounded and harmless."""

    def __init__(self, message: str = "") -> None:
        super().__init__(bounded(message))

    def with_context(self: _E, context: str) -> _E:
        """The same error with ``context`` ("file 'x.safetensors'") put before its message."""
        message = f"{context}: {self}"
        return type(self)(message)


class FileFormatError(LycorisError):
    """The bytes of a file are not what its format asks for (truncated, overlapping, corrupt …)."""


class NotAnAdapterError(LycorisError):
    """The file is sound, but holds no adapter: a checkpoint, a VAE, an embedding …"""


class UnknownAdapterError(LycorisError):
    """The tensors of one layer belong to no known algorithm."""


class AmbiguousAdapterError(LycorisError):
    """The tensors of one layer fit more than one algorithm."""


class ShapeMismatchError(LycorisError):
    """Factors that do not fit each other, or an adapter that does not fit its weight."""


class SiblingRowsError(LycorisError):
    """A piece of a layer that cannot be changed without the layer's other rows."""


class BadValueError(LycorisError):
    """A tensor holds NaN or infinity, or a number that the maths cannot use."""


class NoMatchError(LycorisError):
    """An adapter set and a model that have no, or not all, layers in common."""


class NoRankError(LycorisError):
    """A rank was asked of an algorithm that cannot be cut to one."""


class NeedsBaseError(LycorisError):
    """A change that depends on the weight was asked for without the base weight."""


class NoSpellingError(LycorisError):
    """A layer or an algorithm that a dialect has no name for, or whose name there is not known."""


class CancelledError(LycorisError):
    """Long work was cancelled by the user. Nothing of it is left behind."""
