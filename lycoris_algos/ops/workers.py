"""Independent pieces of work on a few threads, each of which computes alone.

PyTorch shares every operation on a tensor among its threads, and each operation waits for the slowest of
them: beside another busy program, for one that the system has put aside for some milliseconds. So coarse
pieces (a tensor of a file, a layer) go to workers, and a worker takes the next one when it is done. Each
computes with one thread of PyTorch, so no result depends on how many there are. A piece that is too small to
share at all is computed by ``one_thread``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import torch

_P = TypeVar("_P")
_S = TypeVar("_S")
_R = TypeVar("_R")

# More would only wait for the disk and for memory, and each holds a weight or two.
_MOST = 8


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread in this block."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Workers:
    """As many workers as PyTorch has threads now, at most 8; use it as a context manager.

    They compute with gradients and inference mode as the thread has them that made this. With one GPU they
    overlap reading and writing with its work, for which two are enough.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._threads = torch.get_num_threads()
        most = _MOST if torch.device(device).type == "cpu" else 2
        self.count = min(self._threads, most)
        self._inference = torch.is_inference_mode_enabled()
        self._grad = torch.is_grad_enabled()
        self._pool = ThreadPoolExecutor(
            self.count, "lycoris", initializer=torch.set_num_threads, initargs=(1,)
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the pieces that are being worked on; those that nobody has begun are dropped."""
        self._pool.shutdown(cancel_futures=True)
        # Part of what a worker sets (the threads of MKL) is the whole program's.
        torch.set_num_threads(self._threads)

    def results(
        self, work: Callable[[_P, _S], _R], pieces: Iterable[_P], slots: Sequence[_S]
    ) -> Iterator[tuple[_P, _R]]:
        """(piece, ``work(piece, slot)``) of all ``pieces``, in their order.

        A piece has a slot (buffers, for example) for itself from when it is begun until the result after its
        own is asked for, so no more are ahead than there are slots. What it raises is raised in its turn.
        """
        begun: deque[tuple[_P, Future[_R]]] = deque()
        for piece, slot in zip(pieces, itertools.cycle(slots)):
            if len(begun) == len(slots):
                first, future = begun.popleft()
                yield first, future.result()
            begun.append((piece, self._pool.submit(self._alone, work, piece, slot)))
        for first, future in begun:
            yield first, future.result()

    def _alone(self, work: Callable[[_P, _S], _R], piece: _P, slot: _S) -> _R:
        with torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad):
            return work(piece, slot)
