"""Runs a bake plan: writes the new file tensor by tensor; what is not changed is copied by the system.

The new file appears under its name only when it is complete, on the disk and proven; whatever stops the run
(an error, a full disk, the user, a kill) leaves nothing that could be taken for a model.

Writing takes as long as reading and computing, so it is done beside them, one tensor behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..._types import Cancel, Progress
from ...errors import BadValueError, CancelledError, FileFormatError, LycorisError
from ...io import SafetensorsReader, SafetensorsWriter
from ...text import Brief, quoted
from .overflow import Unheld, unheld
from .plan import BakePlan, TensorPlan
from .proof import Proof, prove
from .recipe import baked_metadata
from .weights import OUT_OF_MEMORY, Baked, Weights

# Untouched tensors are copied in pieces of this size, between which the user may stop.
_STRETCH = 256 << 20


@dataclass(frozen=True, eq=False)
class BakeResult(Brief):
    """A finished bake: the file, what was checked, and what took another way than planned."""

    path: Path
    plan: BakePlan
    proof: Proof
    #: Tensors for which the device had too little memory, so that the CPU made them.
    redone: tuple[str, ...]
    #: Tensors with numbers that their dtype cannot hold, where that was allowed.
    unheld: tuple[Unheld, ...]
    seconds: float
    size: int


def run_bake(
    plan: BakePlan,
    source: str | Path,
    target: str | Path,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    refuse_overflow: bool = True,
) -> BakeResult:
    """Writes the checkpoint ``source`` with the changes of ``plan`` to a new file ``target``.

    An existing file is never replaced: the path that was used is in the result. ``progress`` is told
    (tensors done, of how many, the next one); ``cancel`` is asked between them, and may raise its own
    exception. Every tensor that is changed or converted is looked at for numbers that its dtype cannot hold:
    BadValueError, or with ``refuse_overflow`` False a line of the report. Raises CancelledError, LycorisError
    or FileFormatError; then there is no new file.
    """
    start = time.perf_counter()
    stop = cancel or (lambda: False)
    place = torch.device(device)
    redone: list[str] = []
    lost: list[Unheld] = []
    with torch.no_grad(), SafetensorsReader(Path(source)) as reader:
        if reader.header.tensors != plan.header.tensors:
            raise FileFormatError(
                f"file {quoted(reader.path.name)}: it was changed since the bake was planned"
            )
        tensors = {item.info.name: (item.dtype, item.shape) for item in plan.tensors}
        order = [item.info.name for item in plan.tensors]
        writer = SafetensorsWriter(Path(target), tensors, baked_metadata(plan, reader), order)
        weights = Weights(reader, plan.seed)
        scales: dict[str, Tensor] = {}
        total = len(plan.tensors)
        done = 0
        # The pool ends first, so nothing is being written any more when the writer finishes or cleans up.
        with writer, ThreadPoolExecutor(1, "bake") as pool:
            behind: list[Future[None]] = []
            for stretch in _stretches(plan):
                if stop():
                    raise CancelledError("stopped: nothing was written")
                first, last = stretch[0], stretch[-1]
                if progress is not None:
                    progress(done, total, first.info.name)
                if first.copied:
                    behind.append(pool.submit(writer.copy, reader, first.info.name, last.info.name))
                else:
                    baked = _made(weights, first, place, redone)
                    problem = unheld(first, baked, reader)
                    if problem is not None and refuse_overflow:
                        raise BadValueError(f"{problem}. Nothing was written. {problem.advice}")
                    lost += [] if problem is None else [problem]
                    _wait(behind)
                    behind.append(pool.submit(writer.write, first.info.name, baked.tensor))
                    if baked.scale is not None and first.scale is not None:
                        scales[first.scale] = baked.scale
                done += len(stretch)
            _wait(behind)
            for name, scale in scales.items():
                writer.replace(name, scale)
            known = {problem.name for problem in lost}
            proof = prove(plan, reader, writer.unpublished, weights, place, stop, known)
    if progress is not None:
        progress(total, total, "written and checked")
    seconds = time.perf_counter() - start
    return BakeResult(writer.path, plan, proof, tuple(redone), tuple(lost), seconds, writer.file_size)


def _wait(behind: list[Future[None]]) -> None:
    """Until all of it is done; raises what the first that failed raised."""
    for future in behind:
        future.result()
    behind.clear()


def _made(weights: Weights, item: TensorPlan, device: torch.device, redone: list[str]) -> Baked:
    """One tensor; once more on the CPU where the device runs out of memory."""
    try:
        return weights.make(item, device)
    except OUT_OF_MEMORY:
        redone.append(item.info.name)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        return weights.make(item, torch.device("cpu"))
    except (OUT_OF_MEMORY, MemoryError) as error:
        raise LycorisError(
            f"{quoted(item.info.name)}: there is too little memory to change this weight"
        ) from error


def _stretches(plan: BakePlan) -> Iterator[list[TensorPlan]]:
    """The tensors in order: untouched ones that follow each other in the base together, others alone."""
    places = {name: number for number, name in enumerate(plan.header.tensors)}
    stretch: list[TensorPlan] = []
    size = 0
    for item in plan.tensors:
        follows = stretch and places[item.info.name] == places[stretch[-1].info.name] + 1
        if stretch and not (item.copied and follows and size < _STRETCH):
            yield stretch
            stretch, size = [], 0
        if item.copied:
            stretch.append(item)
            size += item.info.nbytes
        else:
            yield [item]
    if stretch:
        yield stretch
