"""Applies structures to a weight: in place, in order, rounded once.

How a weight is gone through:

- A weight that is already in the compute dtype, and whose strides let it be seen as a matrix of rows, is
  updated in place and whole, with no temporary of its size.
- Any other (bf16, fp16, fp8, channels-last) goes through an fp32 buffer, a block of rows at a time: every
  entry of a stack is added to the block while it is in the cache, and it is rounded once on the way back.
- Where the change of a row depends on far-away rows (a norm over a whole column, a butterfly of all rows),
  the block is the whole weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops.dtypes import compute_dtype
from ..ops.rounding import Extremes
from ..ops.rows import matrix_view
from ..ops.scratch import scratch
from ..ops.workers import one_thread
from ._base import Structure, common_unit
from .blocks import longest, row_ranges

Entry = tuple[Structure, float]

# Numbers of a weight on the CPU up to which one thread changes it. A second one would save some hundredths of
# a millisecond, and costs many milliseconds where another program keeps it waiting (docs/benchmarks.md).
_SMALL = 2**18


def apply_(
    weight: Tensor,
    entries: Sequence[Entry],
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    inverse: Callable[[Tensor], Tensor] | None = None,
    extremes: Extremes | None = None,
) -> Tensor:
    """weight += m₁·ΔW₁, then m₂·ΔW₂ …, in place, in this order, rounding once; returns ``weight``.

    ``entries`` are (structure, multiplier); those with multiplier 0 are skipped. With ``transform`` (a host
    that stores the weight reordered) each ΔW is formed, transformed and then added; a structure that depends
    on the weight then also needs ``inverse``, which gives back the order that it was trained in (TypeError
    without). A structure that enlarges its weight makes a new tensor, which is returned instead, and
    ``weight`` stays as it is. ``extremes`` sees the changed weight before it is rounded. Raises
    ShapeMismatchError before anything is changed.
    """
    if torch.is_grad_enabled():  # ComfyUI has it off, and asking is cheaper than switching it off again
        with torch.no_grad():
            return apply_(weight, entries, transform=transform, inverse=inverse, extremes=extremes)
    if weight.device.type == "cpu" and weight.numel() <= _SMALL and torch.get_num_threads() > 1:
        with one_thread():
            return apply_(weight, entries, transform=transform, inverse=inverse, extremes=extremes)
    active = [entry for entry in entries if entry[1] != 0.0]
    shape = tuple(weight.shape)
    for structure, _ in active:
        shape = structure.new_shape(shape)
        structure.fits(shape)
    if not active or weight.numel() == 0:
        return weight
    weight = enlarged(weight, shape)
    dtype = compute_dtype(weight.dtype)
    ready = [(structure.ready(weight.device, dtype), multiplier) for structure, multiplier in active]
    if transform is None:
        _update_(weight, ready, dtype, extremes)
        return weight
    if inverse is None and any(structure.needs_weight for structure, _ in ready):
        raise TypeError("a change that depends on the weight needs it in the order it was trained in")
    wide = weight.to(dtype)
    for structure, multiplier in ready:
        trained = inverse(wide) if inverse is not None else wide
        matrix = trained.reshape(trained.shape[0] if trained.dim() else 1, -1)
        change = structure.delta(matrix).to(dtype).reshape(trained.shape)
        wide += transform(change * multiplier)
    if extremes is not None:
        extremes.see(wide)
    return weight if wide is weight else weight.copy_(wide)


def enlarged(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``weight`` itself if it has ``shape``, else a new tensor with it in the corner of zeros."""
    if tuple(weight.shape) == shape:
        return weight
    larger = weight.new_zeros(shape)
    larger[tuple(slice(size) for size in weight.shape)] = weight
    return larger


def _update_(weight: Tensor, steps: Sequence[Entry], dtype: torch.dtype, extremes: Extremes | None) -> None:
    """Applies ready structures to ``weight`` in place, in order, computing in ``dtype``."""
    matrix = matrix_view(weight) if weight.dtype == dtype else None
    if matrix is not None:
        for structure, multiplier in steps:
            structure.add_rows_(matrix, 0, multiplier, matrix)
        if extremes is not None:
            extremes.see(matrix)
        return
    weight = weight if weight.dim() else weight.view(1)
    count, columns = weight.shape[0], weight[0].numel()
    unit = common_unit(structure.row_unit for structure, _ in steps)
    blocks = row_ranges(count, columns, dtype, weight.device, unit)
    with scratch((longest(blocks), *weight.shape[1:]), dtype, weight.device) as buffer:
        for start, stop in blocks:
            block = buffer[: stop - start]
            block.copy_(weight[start:stop])
            rows = block.view(stop - start, columns)
            for structure, multiplier in steps:
                structure.add_rows_(rows, start, multiplier, rows)
            if extremes is not None:
                extremes.see(block)
            weight[start:stop].copy_(block)
