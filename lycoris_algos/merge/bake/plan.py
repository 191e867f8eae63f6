"""What a bake will do, decided before a single number is read: from the checkpoint's header and the adapters.

For every tensor of the checkpoint: copied, converted, or changed, by what and where in it; and for every
layer of every file whether it has a place, or why not. The same rules as live application: a layer is placed
whole or not at all, and the changes of one weight run in the order of the stack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...adapters import LayerAdapter
from ...errors import LycorisError, NoMatchError, ShapeMismatchError
from ...formats import encoder_number, is_text_layer, model_paths, text_paths
from ...io import Header, TensorInfo
from ...models.checkpoint import CheckpointIndex, Place, Spot, index_checkpoint
from ...network import AdapterSet, Unmatched
from ...ops.rounding import STOCHASTIC
from .storage import companions, is_companion, is_mark, refuse_file, refuse_weight, scale_of


@dataclass(frozen=True, eq=False)
class BakeEntry:
    """One file of a stack, and its multipliers for the diffusion model and for text encoders."""

    adapters: AdapterSet
    multiplier: float = 1.0
    clip_multiplier: float = 1.0


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to one spot: (adapter, multiplier) in order of application, and the layers' names."""

    spot: Spot
    entries: tuple[tuple[LayerAdapter, float], ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TensorPlan:
    """One tensor of the new file: where it comes from, what changes it, and how it is stored.

    ``scale`` is the key of an fp8 weight's scale; ``keeps_scale`` says whether it is stored so again.
    """

    info: TensorInfo
    changes: tuple[Change, ...]
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
class FilePlan:
    """What becomes of one file of the stack: which layers have a place, and which do not.

    ``left_out`` are sentences about what the checkpoint has no part for.
    """

    entry: BakeEntry
    placed: tuple[str, ...]
    unmatched: tuple[Unmatched, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class BakePlan:
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
            if not file.placed:
                reasons = [f"- {item.key}: {item.reason}" for item in file.unmatched[:4]]
                raise NoMatchError(
                    f"none of the {len(adapters)} layers of '{adapters.name}' fits '{self.base}', which has "
                    + "\n".join([f"{self.index.what}.", *file.left_out, *reasons])
                    + "\nIt was trained for another kind of model: use it with that, or remove it."
                )
            if everything and file.unmatched:
                reasons = [f"- {item.key}: {item.reason}" for item in file.unmatched[:8]]
                raise NoMatchError(
                    f"{len(file.unmatched)} entries of '{adapters.name}' do not fit '{self.base}':\n"
                    + "\n".join(reasons)
                )


def plan_bake(
    header: Header,
    stack: Sequence[BakeEntry],
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
        refuse_file(tensors)
        shapes = {key: info.shape for key, info in tensors.items() if not is_companion(key)}
        index = index_checkpoint(shapes)
        matcher = _Matcher(index, shapes)
        files = tuple(matcher.place(entry) for entry in stack)
        changes = matcher.changes()
        for key in changes:
            refuse_weight(key, tensors)
    except LycorisError as error:
        raise error.with_context(f"file '{base}'") from error
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


class _Matcher:
    """Places the layers of a stack, file by file, and collects what that changes."""

    def __init__(self, index: CheckpointIndex, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._index = index
        self._shapes = shapes
        self._entries: dict[Spot, list[tuple[LayerAdapter, float]]] = defaultdict(list)
        self._layers: dict[Spot, list[str]] = defaultdict(list)

    def place(self, entry: BakeEntry) -> FilePlan:
        """Finds a place for each layer of one file."""
        index = self._index
        placed: list[str] = []
        unmatched = list(entry.adapters.unmatched)
        absent: dict[str, int] = defaultdict(int)
        for layer, adapter in entry.adapters.items():
            is_text = is_text_layer(layer) or (
                self._is_somewhere(layer, True) and not self._is_somewhere(layer)
            )
            names = index.text if is_text else index.model
            what = "text encoder" if is_text else "diffusion model"
            if not len(names):
                absent[what] += 1
                continue
            found = self._fit(layer, adapter, is_text)
            if isinstance(found, str):
                unmatched.append(Unmatched(layer, found))
                continue
            placed.append(layer)
            multiplier = entry.clip_multiplier if is_text else entry.multiplier
            if multiplier != 0.0:
                self._add(layer, adapter, found, multiplier)
        left_out = [
            f"{count} {what} layers are left out: the file has no {what}" for what, count in absent.items()
        ]
        if entry.adapters.embeddings:
            words = ", ".join(f"'{name}'" for name in entry.adapters.embeddings)
            left_out.append(f"embeddings are left out: {words}: a checkpoint has no place for words")
        return FilePlan(entry, tuple(placed), tuple(unmatched), tuple(left_out))

    def changes(self) -> dict[str, tuple[Change, ...]]:
        """{key: what changes it}, each in the order in which its spots were first named."""
        found: dict[str, list[Change]] = defaultdict(list)
        for spot, entries in self._entries.items():
            names = tuple(dict.fromkeys(self._layers[spot]))
            found[spot.key].append(Change(spot, tuple(entries), names))
        return {key: tuple(own) for key, own in found.items()}

    def _add(self, layer: str, adapter: LayerAdapter, where: Place, multiplier: float) -> None:
        own = adapter if adapter.weight_components or adapter.magnitude or adapter.reshape else None
        for spot, part in ((where.weight, own), (where.bias, adapter.bias)):
            if spot is not None and part is not None:
                self._entries[spot].append((part, multiplier))
                self._layers[spot].append(layer)

    def _meanings(self, layer: str, is_text: bool) -> Iterator[Place]:
        """The places that ``layer`` may mean, best first."""
        names = self._index.text if is_text else self._index.model
        paths = dict.fromkeys((text_paths if is_text else model_paths)(layer))
        found = list(dict.fromkeys(where for path in paths for where in names.look_up(path)))
        number = encoder_number(layer) if is_text else None
        if number is not None and number <= len(self._index.encoders):
            found.sort(key=lambda where: where.encoder != self._index.encoders[number - 1])
        yield from found

    def _is_somewhere(self, layer: str, is_text: bool = False) -> bool:
        return next(self._meanings(layer, is_text), None) is not None

    def _fit(self, layer: str, adapter: LayerAdapter, is_text: bool) -> Place | str:
        """Where ``adapter`` goes, or the reason why it cannot go anywhere."""
        what = "text encoder" if is_text else "diffusion model"
        reason = f"the file's {what} has no such layer"
        for number, where in enumerate(self._meanings(layer, is_text)):
            problem = self._problem(adapter, where, what)
            if problem is None:
                return where
            reason = reason if number else problem
        return reason

    def _problem(self, adapter: LayerAdapter, where: Place, what: str) -> str | None:
        """Why ``adapter`` cannot go to ``where``; None if it can."""
        spot = where.weight
        try:
            adapter.fits(spot.shape(self._shapes))
            if adapter.bias is not None and where.bias is not None:
                adapter.bias.fits(where.bias.shape(self._shapes))
        except ShapeMismatchError as error:
            return f"{error}: it was trained for another model"
        if where.bias is None and adapter.needs_bias:
            return f"it changes a bias, but this layer of the {what} has none"
        if adapter.reshape is not None and spot != Spot(spot.key):
            return "it enlarges a weight that this file stores as a part of another"
        return None


def _tensor_plan(
    info: TensorInfo,
    changes: tuple[Change, ...],
    dtype: torch.dtype | None,
    index: CheckpointIndex,
    tensors: Mapping[str, TensorInfo],
) -> TensorPlan:
    scale = scale_of(info.name, tensors)
    shape = info.shape
    for change in changes:
        for adapter, _ in change.entries:
            shape = adapter.new_shape(shape) if change.spot == Spot(info.name) else shape
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
