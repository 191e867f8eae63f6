"""Looks at a stack: layer after layer, on a few workers, each holding one weight of the model at most.

Whatever the algebra of a change allows is answered by its factors; a weight of the model is fetched only
where a change depends on it, or a view compares with it. A layer that cannot be measured does not stop the
others: it says why.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._types import Cancel, Progress
from ..adapters import LayerAdapter
from ..deltas import Layerwise, computing_device, effective_rank, survival
from ..errors import LycorisError, NeedsBaseError
from ..formats import is_text_layer
from ..io import base_model, trigger_words
from ..model_files import KnownModel, meaning
from ..models import identify
from ..network import StackEntry, Unmatched
from ..network.roles import roles_of
from ..ops.dtypes import STORED_DTYPES
from ..ops.workers import Workers
from ..structures import Structure, enlarged
from ..text import Brief, quoted
from .meetings import Change, Compared, Ledger, compare
from .report import describe, unmatched_lines
from .values import FileValues, Inspection, LayerValues, View

#: Singular values that are kept of each layer.
SPECTRUM = 64
# What quantisation is asked about: what models are stored in.
_TYPES = {name: dtype for name, dtype in STORED_DTYPES.items() if dtype != torch.float32}
# A layer stands out whose ‖ΔW‖/‖W‖ lies so many deviations above the median (of the logarithms; deviations as
# the median of all, which outliers do not widen; Iglewicz and Hoaglin), and is twice it at least.
_DEVIATIONS, _NORMAL, _TWICE, _FEWEST = 3.5, 0.6745, 2.0, 8


@torch.no_grad()
def inspect(
    stack: Sequence[StackEntry],
    view: View = View.OVERVIEW,
    known: KnownModel | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Inspection:
    """What ``view`` wants to know of ``stack``, against the model ``known``, computed on ``device``.

    The overview looks at names and shapes only. Raises CancelledError between layers.
    """
    task = _Task(stack, view, known, computing_device(device))
    groups = task.groups()
    ledger = Ledger()
    layers: list[LayerValues] = []
    with Workers(task.device) as workers:
        layerwise = Layerwise(task.device, workers, len(groups), progress, cancel)
        for _, (values, compared) in layerwise.results(groups, task.measured):
            layers += values
            ledger.enter(values[0].block, compared)
    if progress is not None:
        progress(len(groups), len(groups), "inspected")
    layers.sort(key=lambda values: values.file)
    if view is View.RELATIVE:
        layers = _with_outliers(layers)
    pairs, joint = ledger.balance()
    return Inspection(
        view,
        tuple(map(_file_values, stack)),
        tuple(layers),
        None if known is None else known.family(),
        pairs,
        joint,
        tuple(_warnings(stack, layers)),
    )


@dataclass(frozen=True, eq=False)
class _Item(Brief):
    """A layer of one of the files."""

    file: int
    name: str
    adapter: LayerAdapter
    multiplier: float


@dataclass(frozen=True, eq=False)
class _Group(Brief):
    """The layers of all files that mean the same."""

    items: list[_Item]

    @property
    def name(self) -> str:
        """What progress calls it."""
        return self.items[0].name


@dataclass
class _Task(Brief):
    """One inspection: what is looked at, and where it computes."""

    stack: Sequence[StackEntry]
    view: View
    known: KnownModel | None
    device: torch.device

    def __post_init__(self) -> None:
        self._fetching = threading.Lock()  # a loaded model need not be able to give several at a time
        self._role_of = roles_of(self.known)
        known = None if self.view is View.OVERVIEW else self.known
        #: Of each file, the layers that it does not use, since others of it change the same weight.
        self._unused = [
            frozenset() if known is None else known.overlaps(entry.adapters).unused for entry in self.stack
        ]

    def groups(self) -> list[_Group]:
        """All layers of all files, in order of first appearance."""
        groups: dict[Hashable, list[_Item]] = {}
        for file, entry in enumerate(self.stack):
            for name, adapter in entry.adapters.items():
                is_text = is_text_layer(name) if self.known is None else self.known.is_text(name)
                item = _Item(file, name, adapter, entry.multiplier(name, is_text, self._role_of))
                own = groups.setdefault(meaning(name, self.known), [])
                if own and own[-1].file == file:  # a second name for the same
                    own = groups.setdefault((file, name), [])
                own.append(item)
        return [_Group(items) for items in groups.values()]

    def described(self, item: _Item) -> LayerValues:
        """What is known of a layer without computing."""
        adapter = item.adapter
        role = self.stack[item.file].role(item.name, self._role_of)
        algorithm = adapter.algorithm
        own = adapter.weight_components or adapter.bias_extras
        names = [component.algo for component in own]
        names += [] if adapter.magnitude is None else [adapter.magnitude.algo]
        return LayerValues(
            item.file,
            item.name,
            None if self.known is None else self.known.target(item.name),
            role.block,
            role.kind,
            "+".join(names),
            None if algorithm is None else algorithm.rank,
            self._shape(item),
            adapter.size_bytes,
            "" if self.known is None else self.known.refusal(item.name),
        )

    def measured(self, group: _Group) -> tuple[list[LayerValues], Compared]:
        """(the values of layers that mean the same, how their changes meet)."""
        layers: list[LayerValues] = []
        changes: list[Change] = []
        weight: Tensor | None = None
        for item in group.items:
            values = self.described(item)
            if self.view is View.OVERVIEW or item.name in self._unused[item.file]:
                layers.append(values)
                continue
            try:
                structure, weight = self._change(item, weight)
            except LycorisError as error:
                layers.append(replace(values, problem=values.problem or str(error)))
                continue
            layers.append(self._looked_at(item, values, structure, weight))
            if self.view is View.COMPARE and item.multiplier != 0.0:
                changes.append(Change(item.file, structure, item.multiplier))
        return layers, compare(changes, weight)

    def _looked_at(
        self, item: _Item, values: LayerValues, structure: Structure, weight: Tensor | None
    ) -> LayerValues:
        """``values`` with what the view asks for, of ``structure`` and the model's ``weight`` (o, c)."""
        own = weight if structure.needs_weight else None
        if self.view is View.SPECTRA:
            spectrum = structure.spectrum(own)
            norm = float(torch.linalg.vector_norm(spectrum))
            leading = tuple(spectrum[:SPECTRUM].tolist())
            return replace(
                values, norm=norm, effective_rank=effective_rank(spectrum), singular_values=leading
            )
        values = replace(values, norm=structure.norm(own))
        if weight is None or self.known is None:
            return values
        if self.view is View.RELATIVE:
            base = float(torch.linalg.vector_norm(weight))
            return replace(values, relative=math.sqrt(values.energy) / base if base else None)
        if self.view is View.QUANTISATION and item.multiplier != 0.0:
            survived = {
                name: survival(structure, item.multiplier, weight, dtype) for name, dtype in _TYPES.items()
            }
            return replace(
                values,
                survival={name: value for name, value in survived.items() if value is not None},
                dtype=_name(self.known.dtype(item.name)),
            )
        return values

    # ---- a change and its weight ----------------------------------------------------------------

    def _what(self, item: _Item) -> tuple[str, LayerAdapter]:
        """The parameter that counts: the weight, or the bias of a layer that changes nothing else."""
        bias = item.adapter.bias
        return ("weight", item.adapter) if item.adapter.weight_components or bias is None else ("bias", bias)

    def _shape(self, item: _Item) -> tuple[int, ...] | None:
        what, adapter = self._what(item)
        shape = None if self.known is None else self.known.shape(item.name, what)
        return shape or adapter.weight_shape or adapter.matrix_shape

    def _change(self, item: _Item, weight: Tensor | None) -> tuple[Structure, Tensor | None]:
        """(what the layer does, ready to compute; W (o, c) where it is needed, fetched unless it is given).

        Raises NeedsBaseError where nothing tells what only a model can, and what adapters raise.
        """
        what, adapter = self._what(item)
        shape = self._shape(item)
        compares = self.view in (View.RELATIVE, View.QUANTISATION)
        if weight is None and (adapter.needs_weight or compares):
            weight = self._fetched(item, what)
        if shape is None or (weight is None and adapter.needs_weight):
            titles = " + ".join(adapter.titles)
            raise NeedsBaseError(f"{titles} does not tell by itself what it changes: give the model")
        made = adapter.structure(shape, base=None if weight is None else lambda: weight)
        return made.cast(self.device, torch.float32), weight

    def _fetched(self, item: _Item, what: str) -> Tensor | None:
        """The model's own weight as a matrix, of the size that the layer gives it; None if there is none."""
        if self.known is None or self.known.shape(item.name, what) is None:
            return None
        with self._fetching:
            fetched = self.known.fetch(item.name, what).to(self.device, torch.float32)
        fetched = enlarged(fetched, item.adapter.new_shape(tuple(fetched.shape)))
        return fetched.reshape(fetched.shape[0] if fetched.dim() else 1, -1)


def _name(dtype: torch.dtype | None) -> str | None:
    """The name of a number type, as people choose it, else PyTorch's."""
    if dtype is None:
        return None
    own = {known: name for name, known in STORED_DTYPES.items()}
    return own.get(dtype, str(dtype).removeprefix("torch."))


def _file_values(entry: StackEntry) -> FileValues:
    adapters = entry.adapters
    parts: Counter[str] = Counter()
    for name, layer in adapters.items():
        parts["text encoder" if is_text_layer(name) else "model"] += layer.size_bytes
    parts["embeddings"] = sum(t.nbytes for own in adapters.embeddings.values() for t in own.values())
    parts["not used"] = sum(tensor.nbytes for tensor in adapters.unread.values())
    return FileValues(
        adapters.name,
        entry.strength_model,
        entry.strength_clip,
        identify(adapters, adapters.metadata),
        base_model(adapters.metadata),
        adapters.dialect,
        trigger_words(adapters.metadata),
        {part: size for part, size in parts.items() if size},
        describe(adapters),
    )


def _with_outliers(layers: Sequence[LayerValues]) -> list[LayerValues]:
    """``layers`` with those marked that stand out among those of their file."""
    by_file: dict[int, list[float]] = defaultdict(list)
    for values in layers:
        if values.relative:
            by_file[values.file].append(math.log(values.relative))
    limits = {file: _limit(logs) for file, logs in by_file.items()}
    return [
        replace(values, outlier=True) if values.relative and values.relative > limits[values.file] else values
        for values in layers
    ]


def _limit(logs: Sequence[float]) -> float:
    """The ‖ΔW‖/‖W‖ above which a layer stands out."""
    if len(logs) < _FEWEST:
        return math.inf
    middle = statistics.median(logs)
    deviation = statistics.median(abs(value - middle) for value in logs) / _NORMAL
    return math.exp(middle + max(_DEVIATIONS * deviation, math.log(_TWICE)))


def _warnings(stack: Sequence[StackEntry], layers: Sequence[LayerValues]) -> Iterator[str]:
    """What is not right with each file, a line for each family of layers and reason."""
    for file, entry in enumerate(stack):
        problems = [
            *entry.adapters.unmatched,
            *(Unmatched(own.layer, own.problem) for own in layers if own.file == file and own.problem),
        ]
        for line in unmatched_lines(problems):
            yield f"{quoted(entry.adapters.name)}: {line.strip(' -')}"
