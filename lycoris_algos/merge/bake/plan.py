"""The plan of a bake: what happens to every tensor, decided from the checkpoint's header and the adapters.

For every tensor of the checkpoint: copied, converted, or changed, by what and where in it; and for every
layer of every file whether it has a place, or why not. The same rules as live application: a layer is placed
whole or not at all, and the changes of one weight run in the order of the stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import LycorisError, NoMatchError
from ...inspection import unmatched_lines
from ...io import Header, TensorInfo
from ...model_files import CheckpointIndex, Spot, advice, index_header
from ...model_files.storage import companions, is_companion, is_mark, refuse_weight, scale_of
from ...network import StackEntry, check_multipliers
from ...ops.rounding import STOCHASTIC
from ...text import Brief, quoted
from .matching import FilePlan, Matcher, PlannedChange


@dataclass(frozen=True, eq=False)
class TensorPlan(Brief):
    """One tensor of the new file: where it comes from, what changes it, and how it is stored.

    ``changes`` are in order, and also those of other tensors that have to be seen together with it.
    ``scale`` is the key of an fp8 weight's scale; ``keeps_scale`` says whether it is stored so again.
    """

    info: TensorInfo
    changes: tuple[PlannedChange, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    scale: str | None = None
    keeps_scale: bool = False

    @property
    def copied(self) -> bool:
        """Whether its bytes stay as they are."""
        unscaled = self.scale is not None and not self.keeps_scale
        return not self.changes and self.dtype == self.info.dtype and not unscaled


@dataclass(frozen=True, eq=False)
class BakePlan(Brief):
    """A whole bake. ``tensors`` are in the order of the new file; ``dropped`` keys are not in it any more.

    ``dtype`` is what was asked for, None for "as the base". ``program`` signs the recipe.
    """

    header: Header
    index: CheckpointIndex
    tensors: tuple[TensorPlan, ...]
    dropped: tuple[str, ...]
    files: tuple[FilePlan, ...]
    dtype: torch.dtype | None
    seed: int
    base: str
    program: str

    @property
    def changed(self) -> list[TensorPlan]:
        """The tensors that adapters change."""
        return [item for item in self.tensors if item.changes]

    def require(self, *, everything: bool = False) -> None:
        """NoMatchError if a file of the stack has no place at all; ``everything``: if anything has none."""
        for file in self.files:
            adapters = file.entry.adapters
            name, base = quoted(adapters.name), quoted(self.base)
            if not file.placed:
                reasons = unmatched_lines(file.unmatched)[:4]
                raise NoMatchError(
                    f"none of the {len(adapters)} layers of {name} fits {base}, which has "
                    + "\n".join([f"{self.index.what}.", *file.left_out, *reasons])
                    + f"\n{advice(adapters, self.index)}"
                )
            if everything and file.unmatched:
                reasons = unmatched_lines(file.unmatched)[:8]
                raise NoMatchError(
                    f"{len(file.unmatched)} entries of {name} do not fit {base}:\n" + "\n".join(reasons)
                )


def plan_bake(
    header: Header,
    stack: Sequence[StackEntry],
    dtype: torch.dtype | None = None,
    *,
    base: str = "checkpoint",
    seed: int = 0,
    program: str = "lycoris_algos",
) -> BakePlan:
    """Plans to bake ``stack`` into the checkpoint with ``header``, stored in ``dtype`` (None: as the base).

    ``base`` is what messages call the checkpoint. Layers that fit nothing are listed, not refused: see
    ``BakePlan.require``. Raises LycorisError for a checkpoint that is stored in a way that cannot be changed.
    """
    tensors = header.tensors
    try:
        index = index_header(tensors)
        matcher = Matcher(index)
        files = tuple(matcher.place(entry) for entry in stack)
        check_multipliers(stack, [file.role for file in files])
        changes = matcher.changes()
        for key in changes:
            refuse_weight(key, tensors)
    except LycorisError as error:
        raise error.with_context(f"file {quoted(base)}") from error
    planned = [
        _tensor_plan(info, changes.get(key, ()), dtype, index, tensors)
        for key, info in tensors.items()
        if not is_companion(key)
    ]
    dropped = _dropped(planned, tensors)
    kept = {item.info.name: item for item in planned}
    for key, info in tensors.items():
        if key not in kept and key not in dropped:
            kept[key] = TensorPlan(info, (), info.dtype, info.shape)
    ordered = [kept[key] for key in tensors if key in kept]
    if any(item.dtype != item.info.dtype for item in ordered):
        # Wide numbers first, so that every tensor stays aligned.
        ordered.sort(key=lambda item: -item.dtype.itemsize)
    return BakePlan(header, index, tuple(ordered), tuple(dropped), files, dtype, seed, base, program)


def _tensor_plan(
    info: TensorInfo,
    changes: tuple[PlannedChange, ...],
    dtype: torch.dtype | None,
    index: CheckpointIndex,
    tensors: Mapping[str, TensorInfo],
) -> TensorPlan:
    scale = scale_of(info.name, tensors)
    shape = info.shape
    for change in changes:
        for added, _ in change.entries:
            shape = added.adapter.new_shape(shape) if change.spots == (Spot(info.name),) else shape
    wanted = _stored_dtype(info, dtype, index.parts.get(info.name))
    keeps_scale = scale is not None and wanted == info.dtype
    return TensorPlan(info, changes, wanted, shape, scale, keeps_scale)


def _stored_dtype(info: TensorInfo, dtype: torch.dtype | None, part: str | None) -> torch.dtype:
    """The dtype of a tensor in the new file.

    What belongs to no model (step counters, noise schedules) stays as it is. fp8 is for the matrices of the
    diffusion model and the text encoders: norms, biases and the VAE would only lose by it.
    """
    if dtype is None or part is None or not info.dtype.is_floating_point:
        return info.dtype
    if dtype in STOCHASTIC and (part == "vae" or len(info.shape) < 2):
        return info.dtype
    return dtype


def _dropped(planned: Sequence[TensorPlan], tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Keys about weights that are no longer stored with a scale; the file's marks with the last of them."""
    unscaled = [item for item in planned if item.scale is not None and not item.keeps_scale]
    dropped = [name for item in unscaled for name in companions(item.info.name, tensors)]
    if unscaled and not any(item.keeps_scale for item in planned):
        dropped += [key for key in tensors if is_mark(key)]
    return dropped
