"""Work on the layers of a file, one after another: workers, progress, the user's wish to stop, little memory.

Both combining and extracting go through their layers in this way. Where the device has no memory for a
layer, that layer is computed again on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from .._types import Cancel, Progress
from ..errors import CancelledError, LycorisError
from ..ops.workers import Workers
from ..text import Brief, quoted


class Named(Protocol):
    """A piece of work with the name of its layer."""

    @property
    def name(self) -> str:
        """What progress and errors call it."""


_N = TypeVar("_N", bound=Named)
_T = TypeVar("_T")
#: What PyTorch raises when a device has no more memory.
OUT_OF_MEMORY: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


@dataclass
class Layerwise(Brief):
    """One run of ``steps`` pieces in all: where it computes, and how far it is."""

    device: torch.device
    workers: Workers
    steps: int
    progress: Progress | None = None
    cancel: Cancel | None = None
    done: int = 0

    def results(self, pieces: Sequence[_N], work: Callable[[_N], _T]) -> Iterator[tuple[_N, _T]]:
        """(piece, ``work`` of it), in order. A GPU has memory for one at a time.

        Raises CancelledError between two when ``cancel`` says so, and what ``work`` raises.
        """
        ahead = range(2 * self.workers.count if self.device.type == "cpu" else 1)
        for piece, result in self.workers.results(lambda item, _: work(item), pieces, ahead):
            if self.cancel is not None and self.cancel():
                raise CancelledError("cancelled: nothing was made")
            if self.progress is not None:
                self.progress(self.done, self.steps, piece.name)
            self.done += 1
            yield piece, result

    def with_fallback(self, piece: Named, work: Callable[[torch.device], _T]) -> tuple[_T, bool]:
        """``work`` on the run's device, or on the CPU where that has no room; and whether it came to that.

        What it raises names the layer.
        """
        try:
            return work(self.device), False
        except OUT_OF_MEMORY:
            if self.device.type == "cpu":
                raise
        except LycorisError as error:
            raise error.with_context(f"layer {quoted(piece.name)}") from error
        # Outside of the handler, so that the failed attempt's tensors are free.
        return work(torch.device("cpu")), True


def computing_device(device: torch.device | str) -> torch.device:
    """``device``, or the CPU for Apple's GPUs: they have no float64, which the small decompositions need."""
    return torch.device("cpu" if torch.device(device).type == "mps" else device)
