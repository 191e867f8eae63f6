"""Runs a bake plan: writes the new file tensor by tensor; what is not changed is copied by the system.

The new file appears under its name only when it is complete, on the disk and proven; whatever stops the run
(an error, a full disk, the user, a kill) leaves nothing that could be taken for a model.

Workers read and change tensors, each one of its own, while this thread writes those that are done, in order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..._types import Cancel, Progress
from ...errors import BadValueError, CancelledError, FileFormatError, LycorisError
from ...model_files import Checkpoint, CheckpointWriter
from ...ops.workers import Workers, one_thread
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
    #: Files of a folder that were not copied, since they hold the old weights.
    left_out: tuple[str, ...] = ()


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

    ``target`` is a folder where ``source`` is several files. An existing one is never replaced: the path that
    was used is in the result. ``progress`` is told
    (tensors done, of how many, the next one); ``cancel`` is asked between them, and may raise its own
    exception. Every tensor that is changed or converted is looked at for numbers that its dtype cannot hold:
    BadValueError, or with ``refuse_overflow`` False a line of the report. Raises CancelledError, LycorisError
    or FileFormatError; then there is no new file.
    """
    start = time.perf_counter()
    stop = cancel or (lambda: False)
    place = torch.device(device)
    with torch.no_grad(), Checkpoint(Path(source)) as base:
        if base.header.tensors != plan.header.tensors:
            raise FileFormatError(f"file {quoted(base.path.name)}: it was changed since the bake was planned")
        tensors = {item.info.name: (item.dtype, item.shape) for item in plan.tensors}
        order = [item.info.name for item in plan.tensors]
        metadata = partial(baked_metadata, plan, base.record(plan.base))
        writer = CheckpointWriter(Path(target), base, tensors, order, metadata)
        with writer:
            redone, lost = _write(plan, base, writer, place, stop, progress, refuse_overflow)
            known = {problem.name for problem in lost}
            with one_thread():
                proof = prove(plan, base, writer.finish(), Weights(base, plan), place, stop, known)
    if progress is not None:
        progress(len(order), len(order), "written and checked")
    seconds = time.perf_counter() - start
    return BakeResult(
        writer.path,
        plan,
        proof,
        tuple(redone),
        tuple(lost),
        seconds,
        writer.file_size,
        base.files.left_out,
    )


def _write(
    plan: BakePlan,
    base: Checkpoint,
    writer: CheckpointWriter,
    device: torch.device,
    stop: Cancel,
    progress: Progress | None,
    refuse_overflow: bool,
) -> tuple[list[str], list[Unheld]]:
    """Writes all tensors; (those that the CPU made again, those with numbers beyond their dtype)."""
    redone: list[str] = []
    lost: list[Unheld] = []
    scales: dict[str, Tensor] = {}
    done = 0
    # The workers end first, so nothing is being read any more when the writer finishes or cleans up.
    with Workers(device) as workers:
        # One more than there are workers: a tensor is being written while each makes another.
        makers = [Weights(base, plan) for _ in range(workers.count + 1)]
        for stretch, made in workers.results(partial(_made, device=device), _stretches(plan, base), makers):
            if stop():
                raise CancelledError("stopped: nothing was written")
            first, last = stretch[0], stretch[-1]
            if progress is not None:
                progress(done, len(plan.tensors), first.info.name)
            if made is None:
                writer.copy(first.info.name, last.info.name)
            else:
                problem = unheld(first, made.baked, base)
                if problem is not None and refuse_overflow:
                    raise BadValueError(f"{problem}. Nothing was written. {problem.advice}")
                lost += [] if problem is None else [problem]
                redone += [first.info.name] if made.redone else []
                writer.write(first.info.name, made.baked.tensor)
                if made.baked.scale is not None and first.scale is not None:
                    scales[first.scale] = made.baked.scale
            done += len(stretch)
    for name, scale in scales.items():
        writer.replace(name, scale)
    return redone, lost


@dataclass(frozen=True, eq=False)
class _Made(Brief):
    """A changed tensor, and whether the device had too little memory for it."""

    baked: Baked
    redone: bool


def _made(stretch: list[TensorPlan], weights: Weights, device: torch.device) -> _Made | None:
    """The changed tensor, made on the CPU where the device has too little memory; None: to be copied."""
    item = stretch[0]
    if item.copied:
        return None
    try:
        return _Made(weights.make(item, device), redone=False)
    except OUT_OF_MEMORY:
        pass
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        return _Made(weights.make(item, torch.device("cpu")), redone=True)
    except (OUT_OF_MEMORY, MemoryError) as error:
        raise LycorisError(
            f"{quoted(item.info.name)}: there is too little memory to change this weight"
        ) from error


def _stretches(plan: BakePlan, base: Checkpoint) -> Iterator[list[TensorPlan]]:
    """The tensors in order: untouched ones that follow each other in a file together, others alone."""
    places = {name: (base.place(name)[0], number) for number, name in enumerate(base)}
    stretch: list[TensorPlan] = []
    size = 0
    for item in plan.tensors:
        follows = stretch and _follows(places[item.info.name], places[stretch[-1].info.name])
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


def _follows(place: tuple[str, int], before: tuple[str, int]) -> bool:
    return place == (before[0], before[1] + 1)
