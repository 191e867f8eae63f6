"""The plan of an extraction: which parameters of two models are compared, and what each is stored as.

Both models are known by their indexes (model_files), so that only headers of files are read. What a layer is
called follows from its place: two models store a layer in different ways (OpenCLIP's q, k and v as one), but
its path in ComfyUI's module is the same.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import BadValueError, LycorisError, NoMatchError
from ..model_files import IndexedModel, LayerIndex, Shape, Spot, family_title
from ..network import Unmatched
from ..ops.ranks import RankRule
from ..text import Brief, as_report, capped, listed, quoted
from .options import AUTO, DORA, FULL, LOHA, LOKR, LORA, TUCKER, ExtractOptions

# Parameters of other shapes, as a share of all matrices: more than a model has that was only extended.
_OTHER_SHAPES, _FEW = 0.1, 2
#: The titles of what changes are stored as.
TITLES = {LORA: "LoRA", TUCKER: "Tucker LoRA", LOKR: "LoKr", LOHA: "LoHa", DORA: "DoRA", FULL: "whole"}


@dataclass(frozen=True, eq=False)
class ParameterPlan(Brief):
    """A weight or bias that both models have. ``path`` is ComfyUI's name of its layer."""

    layer: str
    path: str
    what: str
    is_text: bool
    base: Spot
    tuned: Spot
    shape: Shape

    @property
    def name(self) -> str:
        """The layer, or "layer.bias"."""
        return self.layer if self.what == "weight" else f"{self.layer}.bias"

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) as a matrix."""
        return (self.shape[0] if self.shape else 1), math.prod(self.shape[1:])

    @property
    def is_vector(self) -> bool:
        """Whether it is a bias or the weight of a norm, which have no ranks."""
        return min(self.size) == 1

    @property
    def kernel(self) -> int:
        """How many positions its kernel has."""
        return math.prod(self.shape[2:])


@dataclass(frozen=True, eq=False)
class ExtractPlan(Brief):
    """All parameters that are compared, and what is not. ``str`` of it is for a person."""

    base: IndexedModel[LayerIndex]
    tuned: IndexedModel[LayerIndex]
    names: tuple[str, str]
    parameters: tuple[ParameterPlan, ...]
    left_out: tuple[Unmatched, ...]
    options: ExtractOptions
    dialect: str
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps the run reports as progress."""
        return len(self.parameters) * (2 if self.options.priced else 1)

    def rule(self, parameter: ParameterPlan) -> RankRule:
        """How the ranks of ``parameter`` are found."""
        return self.options.rule(parameter.kernel)

    def forms(self, parameter: ParameterPlan) -> tuple[str, ...]:
        """What ``parameter`` may be stored as besides whole: one form, or with ``auto`` several."""
        algorithm = self.options.algorithm
        if parameter.is_vector or algorithm == FULL:
            return ()
        if algorithm == AUTO:
            return (LORA, *((TUCKER,) if parameter.kernel > 1 else ()), LOKR, LOHA, DORA)
        return (LORA,) if algorithm == TUCKER and parameter.kernel == 1 else (algorithm,)

    def __str__(self) -> str:
        vectors = sum(parameter.is_vector for parameter in self.parameters)
        lines = [
            f"{quoted(self.names[1])} minus {quoted(self.names[0])} as {self.options}",
            f"  {len(self.parameters) - vectors} matrices and kernels, {vectors} norms and biases, "
            f"spelled as {self.dialect}",
            *(f"  note: {note}" for note in self.notes),
            *(f"  not compared: {line}" for line in left_out_lines(self.left_out)),
        ]
        return as_report(lines)


def left_out_lines(left_out: tuple[Unmatched, ...]) -> list[str]:
    """A line for each reason, with how many and the first names."""
    reasons = Counter(item.reason for item in left_out)
    lines = []
    for reason, count in reasons.most_common():
        names = [item.key for item in left_out if item.reason == reason]
        lines.append(f"{count}× {reason}: {listed(names, 2, quoted)}")
    return capped(lines)


def plan_extract(
    base: IndexedModel[LayerIndex],
    tuned: IndexedModel[LayerIndex],
    options: ExtractOptions | None = None,
    names: tuple[str, str] = ("base", "tuned"),
) -> ExtractPlan:
    """Plans to store what ``tuned`` has more than ``base``; ``names`` is what messages call them.

    Raises NoMatchError, naming both, for models of different families or sizes; LycorisError for weights
    that are stored in a way that hides them; BadValueError where the options leave nothing to compare.
    """
    options = options or ExtractOptions()
    dialect = options.dialect or _usual_dialect(base)
    pairs = [pair for is_text in (False, True) for pair in _pairs(base, tuned, is_text)]
    _require_same_family(base, tuned, pairs, names)
    spoken = dialect if dialect in ("kohya", "comfy") else "comfy"
    parameters: list[ParameterPlan] = []
    left_out: list[Unmatched] = []
    used: set[str] = set()
    for pair in pairs:
        reason = pair.problem or _unusable(pair, base, tuned) or _unwanted(pair, options)
        layer = pair.layer(spoken)
        if not reason and layer in used:
            reason = "another layer has the same name in this spelling"
        if not reason and not _is_chosen(layer, pair.path, options):
            reason = "left out by the patterns"
        if reason:
            left_out.append(Unmatched(pair.path, reason))
            continue
        used.add(layer)
        parameters += pair.parameters(layer, options)
    if not parameters:
        raise BadValueError(
            "nothing is left to compare: " + "; ".join(left_out_lines(tuple(left_out)) or ["no layers"])
        )
    for model, own, name in zip((base, tuned), ("base", "tuned"), names, strict=True):
        for parameter in parameters:
            try:
                model.require_readable(parameter.base if own == "base" else parameter.tuned)
            except LycorisError as error:
                raise error.with_context(f"file {quoted(name)}") from error
    models = zip((base, tuned), names, strict=True)
    notes = [f"{quoted(name)} {aside}" for model, name in models for aside in model.asides()]
    return ExtractPlan(base, tuned, names, tuple(parameters), tuple(left_out), options, dialect, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Pair(Brief):
    """The same path in both models; ``None`` where one of them does not have it."""

    path: str
    halves: tuple[LayerIndex, LayerIndex]
    base: Spot | None
    tuned: Spot | None

    @property
    def shapes(self) -> tuple[Shape | None, Shape | None]:
        """What both store there."""
        own = zip(self.halves, (self.base, self.tuned), strict=True)
        first, second = (None if spot is None else half.shape((spot,)) for half, spot in own)
        return first, second

    @property
    def problem(self) -> str:
        """Why the two cannot be compared, or ""."""
        first, second = self.shapes
        if first is None or second is None:
            return f"only in {'tuned' if first is None else 'base'}"
        spots = [spot for spot in (self.base, self.tuned) if spot is not None]
        if any(spot.function is not None for spot in spots):
            return "stored in another order by the model"
        if first != second:
            return f"other shapes, {'×'.join(map(str, first))} and {'×'.join(map(str, second))}"
        return ""

    def layer(self, dialect: str) -> str:
        """What ``dialect`` calls the layer, or ComfyUI where that has no name for it."""
        half, spot = (self.halves[0], self.base) if self.base is not None else (self.halves[1], self.tuned)
        assert spot is not None
        named = half.name_in(dialect, (spot,)) or half.name_in("comfy", (spot,))
        return named or self.path

    def parameters(self, layer: str, options: ExtractOptions) -> Iterator[ParameterPlan]:
        """Its weight and its bias."""
        assert self.base is not None
        assert self.tuned is not None
        is_text = self.halves[0].is_text
        yield ParameterPlan(layer, self.path, "weight", is_text, self.base, self.tuned, self.shapes[0] or ())
        if not options.norms_and_biases:
            return
        first, second = (
            half.bias_of(spot) for half, spot in zip(self.halves, (self.base, self.tuned), strict=True)
        )
        if first is not None and second is not None:
            shape = self.halves[0].shape((first,))
            if shape is not None and shape == self.halves[1].shape((second,)):
                yield ParameterPlan(layer, self.path, "bias", is_text, first, second, shape)


def _pairs(base: IndexedModel[LayerIndex], tuned: IndexedModel[LayerIndex], is_text: bool) -> Iterator[_Pair]:
    """Every path of one half in either of the models, where both have that half."""
    first, second = base.index.half(is_text), tuned.index.half(is_text)
    if first is None or second is None:
        return
    mine, theirs = first.parameters(), second.parameters()
    for path in dict.fromkeys((*mine, *theirs)):
        yield _Pair(path, (first, second), mine.get(path), theirs.get(path))


def _unusable(pair: _Pair, base: IndexedModel[LayerIndex], tuned: IndexedModel[LayerIndex]) -> str:
    assert pair.base is not None
    assert pair.tuned is not None
    return base.unusable(pair.base) or tuned.unusable(pair.tuned)


def _unwanted(pair: _Pair, options: ExtractOptions) -> str:
    if pair.halves[0].is_text and not options.text_encoders:
        return "text encoders are left out"
    shape = pair.shapes[0] or ()
    if len(shape) < 2 and not options.norms_and_biases:
        return "norms are left out"
    return ""


def _is_chosen(layer: str, path: str, options: ExtractOptions) -> bool:
    def matches(pattern: str) -> bool:
        return any(pattern in name or fnmatch.fnmatchcase(name, pattern) for name in (layer, path))

    wanted = not options.include or any(map(matches, options.include))
    return wanted and not any(map(matches, options.exclude))


def _usual_dialect(base: IndexedModel[LayerIndex]) -> str:
    """kohya's for the UNets of Stable Diffusion, which all programs know; else ComfyUI's own names."""
    model = base.index.model
    return "kohya" if model is not None and model.names.look_up("input_blocks.0.0") else "comfy"


def _require_same_family(
    base: IndexedModel[LayerIndex],
    tuned: IndexedModel[LayerIndex],
    pairs: list[_Pair],
    names: tuple[str, str],
) -> None:
    known = [pair.shapes for pair in pairs]
    both = [(a, b) for a, b in known if a is not None and b is not None]
    matrices = [(a, b) for a, b in both if max(len(a), len(b)) > 1]
    other = sum(a != b for a, b in matrices)
    if both and 2 * len(both) >= len(known) and other <= max(_FEW, _OTHER_SHAPES * len(matrices)):
        return
    first, second = (
        f"{quoted(name)} is {family_title(model.index) or 'of no family that is known'}"
        for model, name in zip((base, tuned), names, strict=True)
    )
    if not known:
        why = "one holds a diffusion model and the other none, or none of their layers are known"
    elif not both or 2 * len(both) < len(known):
        why = f"only {len(both)} of {len(known)} layers are in both"
    else:
        why = f"{other} of {len(matrices)} weights have other sizes"
    raise NoMatchError(
        f"{first}, and {second}: they are no versions of one model ({why}). "
        "Choose the model that the tuned one was made from"
    )
