"""Reads back what was baked and compares it with what live application makes of the base.

The comparison is done on the hidden file, before it gets its name: a wrong file is never there to be loaded.
A seeded sample is checked, of the changed tensors at least one for every way in which a weight is stored and
changed, and of the untouched ones byte for byte.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..._types import Cancel
from ...errors import CancelledError, LycorisError
from ...model_files import Checkpoint
from ...ops.rounding import STOCHASTIC, overflow_threshold
from ...ops.rows import row_blocks
from ...text import Brief, quoted
from .plan import BakePlan, TensorPlan
from .weights import OUT_OF_MEMORY, Weights

_CHANGED, _COPIED = 8, 4
# Elements compared at a time, so that the working copies stay in the cache.
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Proof(Brief):
    """How many tensors were compared, and the largest difference of a changed one to the live weight.

    ``steps`` is that difference in gaps between neighbouring numbers of the stored dtype (0.5 is rounding to
    the nearest), ``difference`` in the weight's own unit; ``layer`` is where.
    """

    changed: int
    copied: int
    difference: float
    steps: float
    layer: str


def prove(
    plan: BakePlan,
    base: Checkpoint,
    written: Path,
    weights: Weights,
    device: torch.device,
    cancel: Cancel,
    unheld: Collection[str] = (),
) -> Proof:
    """Compares a sample of ``written`` with the live weights; LycorisError where rounding explains less.

    The tensors ``unheld`` are known to have numbers that their dtype cannot hold; the others are compared.
    """
    changed, copied = _sample(plan)
    worst = (0.0, 0.0, "")
    with Checkpoint(written) as reader:
        for item in changed:
            if cancel():
                raise CancelledError("stopped while the new file was checked: nothing was written")
            known = item.info.name in unheld
            try:
                difference, steps = _compare(item, reader, weights, device, known)
            except OUT_OF_MEMORY:
                difference, steps = _compare(item, reader, weights, torch.device("cpu"), known)
            if steps >= worst[1]:
                worst = (difference, steps, item.info.name)
        for item in copied:
            name = item.info.name
            if not _same_bytes(reader[name], base[name]):
                raise LycorisError(
                    f"{quoted(name)} was copied and came out different: the disk may be failing"
                )
    return Proof(len(changed), len(copied), *worst)


def _sample(plan: BakePlan) -> tuple[list[TensorPlan], list[TensorPlan]]:
    choice = random.Random(plan.seed)
    changed = plan.changed
    rescaled = {item.scale for item in changed if item.keeps_scale}
    untouched = [item for item in plan.tensors if item.copied and item.info.name not in rescaled]
    copied = [item for item in untouched if item.info.nbytes]
    kinds: dict[object, list[TensorPlan]] = {}
    for item in changed:
        kinds.setdefault(_kind(item), []).append(item)
    picked = {id(item): item for own in kinds.values() for item in [choice.choice(own)]}
    rest = [item for item in changed if id(item) not in picked]
    for item in choice.sample(rest, min(len(rest), max(0, _CHANGED - len(picked)))):
        picked[id(item)] = item
    return list(picked.values()), choice.sample(copied, min(len(copied), _COPIED))


def _kind(item: TensorPlan) -> object:
    """What makes one changed tensor unlike another, as far as a mistake could hide in it."""
    algorithms = frozenset(
        component.algo
        for change in item.changes
        for added, _ in change.entries
        for component in added.adapter.weight_components
    )
    turned = frozenset(
        (spot.transposed, spot.swapped, spot.part is None, len(change.spots))
        for change in item.changes
        for spot in change.spots
    )
    return item.info.dtype, item.dtype, item.scale is None, len(item.shape), turned, algorithms


def _compare(
    item: TensorPlan, reader: Checkpoint, weights: Weights, device: torch.device, unheld: bool
) -> tuple[float, float]:
    """(largest difference, the same in steps of the stored dtype) of one tensor to the live weight.

    With ``unheld``, numbers that no number of the dtype stands for are not compared.
    """
    live = weights.exact(item, device).reshape(-1)
    stored = reader[item.info.name].reshape(-1)
    scale = 1.0
    if item.keeps_scale and item.scale is not None:
        scale = float(reader[item.scale])
    if unheld:
        held = live.abs() < overflow_threshold(item.dtype) * scale
        live, stored = live[held], stored[held.to(stored.device)]
    limits = torch.finfo(item.dtype)
    allowed = 1.0 if item.dtype in STOCHASTIC else 0.51
    # Float32 sums in another order than the live path's may differ in their own last bits.
    low, high = torch.aminmax(live) if live.numel() else (0.0, 0.0)
    slack = 8 * torch.finfo(live.dtype).eps * max(-float(low), float(high)) / scale
    worst_difference = worst_steps = 0.0
    for start, stop in row_blocks(live.numel(), _BLOCK):
        own = live[start:stop] / scale
        written = stored[start:stop].to(device, live.dtype)
        differences = (written - own).abs_()
        # The gap to the next number is at most ε·|x|, and does not shrink below the smallest normal number.
        gaps = own.abs_().clamp_(min=limits.smallest_normal).mul_(limits.eps)
        largest = float(differences.max()) * scale
        if not bool((differences <= gaps.mul(allowed).add_(slack)).all()):  # also where one is not a number
            raise LycorisError(
                f"{quoted(item.info.name)} was written, read back and found to differ from the live weight "
                f"by {largest:.3g}, more than {str(item.dtype).removeprefix('torch.')} can explain. The new "
                "file was removed: please report this"
            )
        worst_difference = max(worst_difference, largest)
        worst_steps = max(worst_steps, float(differences.div_(gaps).max()))
    return worst_difference, worst_steps


def _same_bytes(first: Tensor, second: Tensor) -> bool:
    views: Iterable[Tensor] = (tensor.reshape(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(*views)
