"""What an inspection finds out, as plain values, and the one document (JSON) that they are written as.

Texts (texts.py), pictures (pictures.py) and the panel of the web page are made of nothing else. The names in
the document are for ever: the help page of Inspect LyCORIS documents them, and scripts rely on them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from ..deltas import Survival
from ..text import Brief


class View(str, Enum):
    """What is looked at. Each finds out what it needs, so a quick one stays quick."""

    OVERVIEW = "overview"
    ENERGY = "energy by block"
    SPECTRA = "spectra"
    RELATIVE = "relative to base"
    COMPARE = "compare stack"
    QUANTISATION = "quantisation"


@dataclass(frozen=True)
class LayerValues(Brief):
    """One layer of one file. What the view did not ask for, or nothing tells, is None or empty."""

    #: Which of the inspected files.
    file: int
    #: As the file calls it, and the parameter that it changes as the model calls that.
    layer: str
    target: str | None
    #: The part of the model, as its family numbers them, and what the layer does there.
    block: str
    kind: str
    #: Stored algorithms, joined by "+".
    algorithm: str
    rank: int | None
    shape: tuple[int, ...] | None
    size_bytes: int
    #: Why it cannot be applied or measured; "" if it can.
    problem: str = ""
    #: ‖ΔW‖ (Frobenius) at multiplier 1.
    norm: float | None = None
    #: ‖ΔW‖/‖W‖, and whether it stands out among those of its file.
    relative: float | None = None
    outlier: bool = False
    effective_rank: float | None = None
    #: The largest, in order.
    singular_values: tuple[float, ...] = ()
    #: {number type: what it leaves of the change, at the strength of the stack}; the type of the model.
    survival: Mapping[str, Survival] = field(default_factory=dict)
    dtype: str | None = None

    @property
    def energy(self) -> float:
        """‖ΔW‖²; 0 where it is not known."""
        return 0.0 if self.norm is None else self.norm**2


@dataclass(frozen=True)
class FileValues(Brief):
    """One inspected file. ``parts`` are bytes: model, text encoders, embeddings, what is not used."""

    name: str
    strength_model: float
    strength_clip: float
    family: str | None
    trained_for: str | None
    dialect: str
    trigger_words: tuple[str, ...]
    parts: Mapping[str, int]
    card: str


@dataclass(frozen=True)
class Meeting(Brief):
    """Two files on the layers that both change (``layers`` of them), at the strengths of the stack.

    ``cosine`` of their changes (1: the same direction, −1: the opposite, 0: neither), the shares of the
    spaces that both write to (``outputs``) and read (``inputs``), and ``conflict``, the share of elements
    that they push in opposite directions. None where one of them changes nothing.
    """

    layers: int
    cosine: float | None
    outputs: float | None
    inputs: float | None
    conflict: float | None


@dataclass(frozen=True)
class Pair(Brief):
    """Two files of a stack against each other: on the whole, and by block."""

    first: int
    second: int
    whole: Meeting
    blocks: Mapping[str, Meeting]


@dataclass(frozen=True)
class Joint(Brief):
    """‖Σ m·ΔW‖ of a whole stack, and Σ ‖m·ΔW‖ of its files one by one, which it cannot exceed."""

    norm: float
    apart: float


@dataclass(frozen=True)
class Inspection(Brief):
    """All that one view of a stack found out. ``model`` is the family of the base model, if any."""

    view: View
    files: tuple[FileValues, ...]
    layers: tuple[LayerValues, ...]
    model: str | None = None
    pairs: tuple[Pair, ...] = ()
    #: All files together, by block; "" is the whole model. Empty unless a stack is compared.
    joint: Mapping[str, Joint] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The names of the files."""
        return " + ".join(file.name for file in self.files)

    @property
    def energies(self) -> dict[str, dict[str, float]]:
        """{block: {kind: Σ‖ΔW‖²}} over all files, blocks in order."""
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for layer in self.layers:
            if layer.norm is not None:
                sums[layer.block][layer.kind] += layer.energy
        return {block: dict(sums[block]) for block in in_order(sums)}

    def to_json(self, *, spectra: bool = True) -> str:
        """The document; numbers that are none (NaN, infinity) are null. ``spectra``: with singular values."""
        return json.dumps(self.document(spectra=spectra), ensure_ascii=False, allow_nan=False)

    def document(self, *, spectra: bool = True) -> dict[str, object]:
        """See the help page of Inspect LyCORIS."""
        families = {file.family for file in self.files}
        return {
            "version": 1,
            "view": self.view.value,
            "file": self.name,
            "files": [
                {
                    "name": file.name,
                    "strength_model": file.strength_model,
                    "strength_clip": file.strength_clip,
                    "family": file.family,
                    "trained_for": file.trained_for,
                    "dialect": file.dialect,
                    "trigger_words": list(file.trigger_words),
                    "bytes": dict(file.parts),
                }
                for file in self.files
            ],
            "algorithms": dict(Counter(layer.algorithm for layer in self.layers).most_common()),
            "family": families.pop() if len(families) == 1 else None,
            "model": self.model,
            "layers": [_layer(layer, spectra) for layer in self.layers],
            "blocks": {
                block: {kind: _number(energy) for kind, energy in kinds.items()}
                for block, kinds in self.energies.items()
            },
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    **_meeting(pair.whole),
                    "blocks": {block: _meeting(own) for block, own in pair.blocks.items()},
                }
                for pair in self.pairs
            ],
            "together": _together(self.joint),
            "warnings": list(self.warnings),
        }


_DIGITS = re.compile(r"(\d+)")


def in_order(blocks: Iterable[str]) -> list[str]:
    """Blocks as a model has them: what comes before all others, those by name and number, the rest."""
    return sorted(blocks, key=_place)


def by_block(layers: Iterable[LayerValues]) -> dict[str, list[LayerValues]]:
    """``layers`` by the block that they are in, blocks in order."""
    blocks: dict[str, list[LayerValues]] = defaultdict(list)
    for layer in layers:
        blocks[layer.block].append(layer)
    return {block: blocks[block] for block in in_order(blocks)}


# What is before and after the numbered blocks of a model, for which "" stands; te2 and so on are as te.
_ORDER = ("embed", "", "final", "other", "te")


def _place(block: str) -> tuple[int, list[tuple[int, str]]]:
    group = block.partition(".")[0].rstrip("0123456789")
    rank = _ORDER.index(group if group in _ORDER else "")
    return rank, [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in _DIGITS.split(block)]


def _layer(layer: LayerValues, spectra: bool) -> dict[str, object]:
    return {
        "file": layer.file,
        "layer": layer.layer,
        "target": layer.target,
        "block": layer.block,
        "kind": layer.kind,
        "algorithm": layer.algorithm,
        "rank": layer.rank,
        "shape": None if layer.shape is None else list(layer.shape),
        "bytes": layer.size_bytes,
        "problem": layer.problem or None,
        "norm": _number(layer.norm),
        "relative": _number(layer.relative),
        "outlier": layer.outlier,
        "effective_rank": _number(layer.effective_rank),
        "singular_values": [_number(value) for value in layer.singular_values if spectra],
        "dtype": layer.dtype,
        "survival": {
            name: {
                "nearest": _number(own.nearest),
                "stochastic": _number(own.stochastic),
                "error": _number(own.error),
            }
            for name, own in layer.survival.items()
        },
    }


def _meeting(own: Meeting) -> dict[str, object]:
    return {
        "layers": own.layers,
        "cosine": _number(own.cosine),
        "overlap_outputs": _number(own.outputs),
        "overlap_inputs": _number(own.inputs),
        "sign_conflict": _number(own.conflict),
    }


def _together(joint: Mapping[str, Joint]) -> dict[str, object] | None:
    if "" not in joint:
        return None
    return {**_joint(joint[""]), "blocks": {block: _joint(own) for block, own in joint.items() if block}}


def _joint(own: Joint) -> dict[str, object]:
    return {"norm_of_sum": _number(own.norm), "sum_of_norms": _number(own.apart)}


def _number(value: float | None) -> float | None:
    """Six digits, which is more than any of these numbers is good for."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
