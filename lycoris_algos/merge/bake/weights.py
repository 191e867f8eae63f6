"""Computes the tensors of a bake: each is read, changed as a loaded model's weights are, and rounded once.

How far a tensor's numbers reach is noted while they are rounded: see ``overflow``.

A weight that is stored in the dtype that it was read in goes through ``apply_`` as it is, which works on rows
whose float32 copy stays in the cache. Everything else (another dtype, a scale, several spots, a transposed
or swapped one) is widened whole first. Both round once.

Where adapters have to see a layer that is stored in pieces as a whole, all its tensors are read and changed
for each of them: that is rare, and so the tensors of a file stay independent of each other.

Buffers live as long as the run: pages that are touched for the first time cost more than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import LycorisError, SiblingRowsError
from ...io import TensorInfo
from ...model_files import Checkpoint
from ...model_files.places import put, row_ranges, seen, swap_halves
from ...model_files.storage import new_scale, scale_of
from ...ops.dtypes import compute_dtype
from ...ops.rounding import STOCHASTIC, Extremes, generator_for, nearest, stochastic
from ...structures import Structure, apply_
from ...text import Brief, quoted
from .matching import PlannedChange
from .plan import BakePlan, TensorPlan

#: What PyTorch raises when a device has no more memory.
OUT_OF_MEMORY: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


@dataclass(frozen=True, eq=False)
class Baked(Brief):
    """A tensor as it goes into the file, how far it reached before, and the scale that it is stored with."""

    tensor: Tensor
    extremes: Extremes
    scale: Tensor | None = None


class Weights:
    """Makes tensors of a run, one at a time: the buffers are used again."""

    def __init__(self, base: Checkpoint, plan: BakePlan) -> None:
        self._base = base
        self._seed = plan.seed
        self._buffers: dict[str, Tensor] = {}
        # Of the largest tensor: a buffer that grows leaves what it was in the allocator of its thread. Memory
        # that is never touched costs nothing.
        numbers = max((math.prod(item.info.shape) for item in plan.tensors if not item.copied), default=0)
        self._largest = numbers * 8

    def make(self, item: TensorPlan, device: torch.device) -> Baked:
        """The tensor ``item`` of the new file, computed on ``device``; valid until the next call.

        Raises LycorisError, naming the layer, and whatever PyTorch raises when memory runs out.
        """
        extremes = Extremes()
        if _direct(item):
            return Baked(self._changed_as_stored(item, device, extremes), extremes)
        wide = self.exact(item, device)
        if item.keeps_scale:
            scale = self._new_scale(item, wide)
            return Baked(
                self._rounded(wide / scale.to(wide).reshape(()), item, extremes), extremes, scale.cpu()
            )
        return Baked(self._rounded(wide, item, extremes), extremes)

    def exact(self, item: TensorPlan, device: torch.device) -> Tensor:
        """The changed weight before it is rounded, in float32 (float64 for float64), on ``device``.

        Valid until the next call.
        """
        name = item.info.name
        keys = {name, *(spot.key for change in item.changes for spot in change.spots)}
        if len(keys) == 1:
            use = "result" if compute_dtype(item.info.dtype) == item.dtype else "wide"
            return _all_changed({name: self._wide(name, device, use)}, item.changes)[name]
        wide = {key: self._wide(key, device) for key in keys}
        return _all_changed(wide, item.changes)[name]

    def _wide(self, key: str, device: torch.device, use: str | None = None) -> Tensor:
        """The weight ``key`` as it is in the base, unpacked, in the buffer ``use`` or one of its own."""
        info = self._base.header.tensors[key]
        dtype = compute_dtype(info.dtype)
        stored = self._read(info, "stored")
        if device.type != "cpu":
            wide = stored.to(device).to(dtype)
        elif use is None:
            wide = stored.to(dtype, copy=True)
        else:
            wide = self._buffer(use, info.shape, dtype).copy_(stored)
        scale = scale_of(key, self._base.header.tensors)
        if scale is not None:
            # A scale is one number; rounding it to the weight's dtype first would change every weight.
            wide.mul_(self._base[scale].to(device, dtype).reshape(()))
        return wide

    def _changed_as_stored(self, item: TensorPlan, device: torch.device, extremes: Extremes) -> Tensor:
        stored = self._read(item.info, "result")
        (change,) = item.changes
        weight = stored if device.type == "cpu" else stored.to(device)
        (spot,) = change.spots
        own = seen(weight, spot)
        entries = _made(change, own.shape, own.dtype, lambda: own.to(compute_dtype(own.dtype), copy=True))
        result = _changed(weight, change, entries, extremes)
        if spot.part is not None:  # the rest of the tensor, which nothing went over
            extremes.see(result)
        return result if device.type == "cpu" else result.cpu()

    def _new_scale(self, item: TensorPlan, wide: Tensor) -> Tensor:
        assert item.scale is not None
        info = self._base.header.tensors[item.scale]
        number = new_scale(wide, item.dtype)
        return torch.full(info.shape, number, dtype=info.dtype, device=wide.device)

    def _rounded(self, wide: Tensor, item: TensorPlan, extremes: Extremes) -> Tensor:
        if item.dtype in STOCHASTIC:
            return stochastic(wide, item.dtype, generator_for(self._seed, item.info.name), extremes)
        if wide.dtype == item.dtype or wide.device.type != "cpu":
            extremes.see(wide)
            return wide.to(item.dtype).cpu()
        return nearest(wide, self._buffer("result", tuple(wide.shape), item.dtype), extremes)

    def _read(self, info: TensorInfo, use: str) -> Tensor:
        stored = self._buffer(use, info.shape, info.dtype)
        self._base.read_into(info.name, stored)
        return stored

    def _buffer(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        needed = torch.Size(shape).numel() * dtype.itemsize
        buffer = self._buffers.get(use)
        if buffer is None or buffer.numel() < needed:
            # Freed first, so that never both are held.
            self._buffers.pop(use, None)
            del buffer
            # A tensor of inference mode (in which ComfyUI runs nodes) could not be used outside of it.
            with torch.inference_mode(False):
                size = max(needed, self._largest)
                buffer = self._buffers[use] = torch.empty(size, dtype=torch.uint8)
        return buffer[:needed].view(dtype).view(shape)


def _direct(item: TensorPlan) -> bool:
    """Whether the tensor may be changed in the form that it is stored in."""
    if item.scale is not None or item.dtype != item.info.dtype or item.dtype in STOCHASTIC:
        return False
    if len(item.changes) != 1 or len(item.changes[0].spots) != 1:
        return False
    (spot,) = item.changes[0].spots
    return not (spot.transposed or spot.swapped)


def _all_changed(weights: dict[str, Tensor], changes: Sequence[PlannedChange]) -> dict[str, Tensor]:
    """``weights`` with all changes, in place where the adapters do not enlarge one."""

    def base(change: PlannedChange) -> Tensor:
        pieces = [seen(weights[spot.key], spot) for spot in change.spots]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()

    made = []
    for change in changes:
        pieces = [seen(weights[spot.key], spot) for spot in change.spots]
        shape = tuple(pieces[0].shape)
        if len(pieces) > 1:
            shape = (sum(len(piece) for piece in pieces), *shape[1:])
        made.append(_made(change, shape, pieces[0].dtype, partial(base, change)))
    for change, entries in zip(changes, made, strict=True):
        if len(change.spots) > 1:
            _change_pieces(weights, change, entries)
        else:
            key = change.spots[0].key
            weights[key] = _changed(weights[key], change, entries)
    return weights


def _change_pieces(
    weights: Mapping[str, Tensor], change: PlannedChange, entries: list[tuple[Structure, float]]
) -> None:
    """The change of a layer in several spots, in place."""
    for (added, _), (structure, multiplier) in zip(change.entries, entries, strict=True):
        pieces = [seen(weights[spot.key], spot) for spot in change.spots]
        counts = [len(piece) for piece in pieces]
        try:
            rows = [added.adapter.rows(structure, *own) for own in row_ranges(counts)]
        except SiblingRowsError:
            pieces = list(torch.split(apply_(torch.cat(pieces), [(structure, multiplier)]), counts))
        else:  # it can be cut once it is made: to the last bit as a patch of each piece does it
            for piece, own in zip(pieces, rows, strict=True):
                apply_(piece, [(own, multiplier)])
        for spot, piece in zip(change.spots, pieces, strict=True):
            put(weights[spot.key], spot, piece)


def _changed(
    weight: Tensor,
    change: PlannedChange,
    entries: list[tuple[Structure, float]],
    extremes: Extremes | None = None,
) -> Tensor:
    """``weight`` with a change of one spot, in place where the adapters do not enlarge it."""
    (spot,) = change.spots
    try:
        if spot.swapped:
            part = weight if spot.part is None else weight.narrow(*spot.part)
            apply_(part, entries, transform=swap_halves, inverse=swap_halves)
            return weight
        result = apply_(seen(weight, spot), entries, extremes=extremes)
    except LycorisError as error:
        raise error.with_context(f"layer {quoted(change.layers[0])}") from error
    if spot.transposed:
        put(weight, spot, result)
        return weight
    return weight if spot.part is not None else result


def _made(
    change: PlannedChange, shape: Sequence[int], dtype: torch.dtype, base: Callable[[], Tensor]
) -> list[tuple[Structure, float]]:
    """The entries' changes of a weight of ``shape``; ``base`` is that weight as it was before all changes."""
    computing = compute_dtype(dtype)
    after = tuple(shape)
    made: list[tuple[Structure, float]] = []
    try:
        for added, multiplier in change.entries:
            made.append((added.structure(after, computing, base), multiplier))
            after = added.adapter.new_shape(after)
    except LycorisError as error:
        raise error.with_context(f"layer {quoted(change.layers[0])}") from error
    return made
