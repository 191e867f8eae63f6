"""The plan of a combination: how each layer's result will be computed. Reads shapes only; can be printed.

Ways to a result, cheapest first:

- *kept*: one adapter alone, stored in the same form, with its multiplier in one of its factors;
- *summed*: adapters whose sum is exactly one of the same algorithm (LoKrs that share a factor);
- *factors*: every adapter has exact low-rank factors, which are put side by side. Fewer ranks come from a QR
  of those (``fit``), without forming the change;
- *dense*: the changes are formed, one layer at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch

from ...adapters import fittable
from ...errors import BadValueError, NeedsBaseError, ShapeMismatchError
from ...model_files import KnownModel
from ...network import StackEntry, check_multipliers
from ...network.roles import roles_of
from ...ops.ranks import RankKind
from ...structures import pays
from ...text import Brief, as_report, capped, quoted
from .methods import Kind
from .options import AUTO, FULL, LORA, SAME, CombineOptions
from .sources import Contribution, alignment_notes, grouped, meeting_notes, met, unread_notes


class Route(str, Enum):
    """How a layer's result is computed; see this module."""

    KEPT = "kept"
    SUMMED = "summed"
    FACTORS = "factors"
    DENSE = "dense"


@dataclass(frozen=True, eq=False)
class ParameterPlan(Brief):
    """One weight or bias of the result. ``shape`` is None where nothing tells its kernel."""

    layer: str
    what: str
    contributions: tuple[Contribution, ...]
    route: Route
    #: What it is stored as: an algorithm's name, or SAME where it is kept.
    form: str
    size: tuple[int, int]
    shape: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """The layer, or "layer.bias"."""
        return self.layer if self.what == "weight" else f"{self.layer}.bias"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of a change that is stored whole: flat where the kernel is not known."""
        return self.shape if self.shape is not None else self.size

    @property
    def is_vector(self) -> bool:
        """Whether it is a bias or the weight of a norm, which have no ranks."""
        return self.size[1] == 1

    @property
    def needs_base(self) -> bool:
        """Whether it cannot be computed without the base weight."""
        return self.route is not Route.KEPT and any(c.adapter.needs_weight for c in self.contributions)


@dataclass(frozen=True, eq=False)
class CombinePlan(Brief):
    """All parameters of the result. ``str`` of it is for a person."""

    parameters: tuple[ParameterPlan, ...]
    sources: tuple[StackEntry, ...]
    options: CombineOptions
    base: KnownModel | None
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps the run reports as progress."""
        return len(self.parameters) * (2 if self.options.rank.kind is RankKind.BUDGET else 1)

    def __str__(self) -> str:
        routes = Counter(
            f"{parameter.route.value}, stored as {_titles(parameter)}" for parameter in self.parameters
        )
        lines = [
            f"{self.options.method} of {len(self.sources)} adapter sets, rank: {self.options.rank}",
            *capped([f"  {source}" for source in self.sources]),
            *(f"  {count}× {route}" for route, count in routes.most_common()),
            *(f"  note: {note}" for note in self.notes),
        ]
        return as_report(lines)


def plan_combine(
    stack: Sequence[StackEntry],
    options: CombineOptions | None = None,
    base: KnownModel | None = None,
) -> CombinePlan:
    """Plans the combination of ``stack`` (in order of application).

    ``base`` is the model that adapters were trained on: it gives weights, and says what layer names mean, so
    that layers of several dialects find each other, and which are of text encoders and take their strengths.
    Raises NeedsBaseError, naming algorithms and a layer, where a delta depends on a
    base weight that is not there; ShapeMismatchError for adapters of different models; BadValueError for a
    stack with which the method can do nothing.
    """
    options = options or CombineOptions()
    sources = tuple(stack)
    _check_stack(sources, options)
    check_multipliers(sources, [roles_of(base)] * len(sources))
    meeting = met(sources, base)
    groups = grouped(sources, base, meeting)
    parameters: list[ParameterPlan] = []
    for group in groups:
        own = [c for c in group if c.adapter.weight_components]
        if own:
            parameters.append(_plan(own, "weight", options, base, sources))
        biases = [replace(c, adapter=c.adapter.bias) for c in group if c.adapter.bias is not None]
        if biases and not _is_absent(biases, base):
            parameters.append(_plan(biases, "bias", options, base, sources))
    _require_base(parameters, base)
    notes = (
        *alignment_notes(sources, groups),
        *meeting_notes(sources, meeting),
        *unread_notes(sources),
        *_notes(parameters, options),
    )
    return CombinePlan(tuple(parameters), sources, options, base, notes)


def weights_for(contribution: Contribution, sources: Sequence[StackEntry]) -> list[float]:
    """The multiplier of every source on layers of the kind that ``contribution`` is to."""
    return [contribution.multiplier_of(source) for source in sources]


def lone_coefficient(
    contribution: Contribution, options: CombineOptions, sources: Sequence[StackEntry]
) -> float:
    """λ·c of an adapter that is alone on its layer, by a linear method."""
    weights = weights_for(contribution, sources)
    one = torch.ones((1, 1), dtype=torch.float64)
    (own,) = options.merge_method.coefficients(weights, [contribution.index], lambda: one, options)
    return options.scaling * own


def _is_absent(biases: Sequence[Contribution], base: KnownModel | None) -> bool:
    """Whether these follow from an algorithm, and the layer turns out to have no bias at all."""
    optional = all(extra.optional for c in biases for extra in c.adapter.extras)
    return optional and base is not None and base.shape(biases[0].name, "bias") is None


def _check_stack(sources: Sequence[StackEntry], options: CombineOptions) -> None:
    if not sources:
        raise BadValueError("there is nothing to combine: the stack is empty")
    least = options.merge_method.at_least
    if len(sources) < least:
        raise BadValueError(
            f"'{options.method}' works on {least} adapters or more, and the stack holds {len(sources)}: "
            "connect Stack LyCORIS, or choose 'sum' to resize or convert one"
        )
    if not any(source.strength_model or source.strength_clip for source in sources):
        raise BadValueError("every strength in the stack is 0, so nothing would be left")


def _plan(
    own: Sequence[Contribution],
    what: str,
    options: CombineOptions,
    base: KnownModel | None,
    sources: Sequence[StackEntry],
) -> ParameterPlan:
    layer = own[0].name
    shape, size = _shape(own, what, base)
    blank = ParameterPlan(layer, what, tuple(own), Route.DENSE, FULL, size, shape)
    if _can_be_kept(blank, options, sources):
        return replace(blank, route=Route.KEPT, form=SAME)
    if blank.is_vector:
        return blank
    summed = _summed_form(own, options)
    if summed is not None:
        return replace(blank, route=Route.SUMMED, form=summed)
    ranks = [c.adapter.exact_rank for c in own]
    total = sum(rank for rank in ranks if rank is not None)
    live = options.live_order and any(c.adapter.needs_weight for c in own[1:])
    by_factors = options.merge_method.by_factors and None not in ranks and pays(total, *size) and not live
    form = _form(own, options)
    if options.rank.kind is RankKind.EXACT and not _holds_exactly(form):
        form = LORA if by_factors else FULL
    return replace(blank, route=Route.FACTORS if by_factors else Route.DENSE, form=form)


def _holds_exactly(form: str) -> bool:
    kind = fittable().get(form)
    return kind is not None and kind.universal


def _shape(
    own: Sequence[Contribution], what: str, base: KnownModel | None
) -> tuple[tuple[int, ...] | None, tuple[int, int]]:
    """(shape of the weight afterwards if known, its size as a matrix). Raises ShapeMismatchError."""
    shape = base.shape(own[0].name, what) if base is not None else None
    if shape is not None:
        for c in own:
            try:
                c.adapter.fits(shape)
            except ShapeMismatchError as error:
                raise error.with_context(f"layer {quoted(c.name)}") from error
        shape = own[0].adapter.new_shape(shape)
    else:
        told = [size for c in own if (size := c.adapter.weight_shape) is not None]
        shape = max(told, key=len) if told else None
    sizes = {size for c in own if (size := c.adapter.matrix_shape) is not None}
    if shape is not None:
        rows = shape[0] if shape else 1
        sizes.add((rows, max(1, int(torch.Size(shape).numel()) // max(1, rows))))
    if len(sizes) > 1:
        found_sizes = " and ".join("×".join(map(str, size)) for size in sorted(sizes))
        raise ShapeMismatchError(
            f"layer {quoted(own[0].name)} changes weights of different sizes ({found_sizes}): "
            "the adapters were trained for different models and cannot be combined"
        )
    # Without any size only the base weight tells, and its absence is reported by _require_base.
    return shape, next(iter(sizes), (0, 0))


def _can_be_kept(blank: ParameterPlan, options: CombineOptions, sources: Sequence[StackEntry]) -> bool:
    """Whether it is one adapter whose form may stay, with its multiplier in a factor of it."""
    own = blank.contributions
    if len(own) != 1 or not options.merge_method.linear:
        return False
    adapter = own[0].adapter
    if not adapter.linear and lone_coefficient(own[0], options, sources) != 1.0:
        return False
    if blank.is_vector:
        return True
    algos = [item.algo for item in adapter.weight_components]
    asked = algos == [options.output] and adapter.magnitude is None
    if options.output not in (SAME, AUTO) and not asked:
        return False
    if options.rank.kind is RankKind.EXACT:
        return True
    rank = None if adapter.plain is None else adapter.plain.rank
    rule = options.rank.of(blank.shape)
    return rule.kind is RankKind.FIXED and rank is not None and rank <= rule.value


def _summed_form(own: Sequence[Contribution], options: CombineOptions) -> str | None:
    """The algorithm of all of ``own``, if their sum is exactly one of it and may stay so; None otherwise."""
    if options.rank.kind is not RankKind.EXACT or options.merge_method.kind is not Kind.WEIGHTS:
        return None
    first, *others = (c.adapter.plain for c in own)
    known = [other for other in others if other is not None]
    if first is None or not known or len(known) < len(others):
        return None
    wanted = options.output in (SAME, AUTO, first.algo)
    return first.algo if wanted and first.sums_with(known) else None


def _form(own: Sequence[Contribution], options: CombineOptions) -> str:
    if options.output != SAME:
        return LORA if options.output == AUTO else options.output
    if options.rank.kind is RankKind.EXACT:
        return SAME
    algos = {None if c.adapter.plain is None else c.adapter.plain.algo for c in own}
    (only,) = algos if len(algos) == 1 else (None,)
    return only if only in fittable() and only is not None else LORA


def _require_base(parameters: Sequence[ParameterPlan], base: KnownModel | None) -> None:
    lacking = [
        parameter
        for parameter in parameters
        if (parameter.needs_base or (parameter.size == (0, 0) and parameter.route is not Route.KEPT))
        and (base is None or base.shape(parameter.layer, parameter.what) is None)
    ]
    if not lacking:
        return
    titles = sorted({title for parameter in lacking for title in _titles_that_need_a_base(parameter)})
    where = f"{len(lacking)} layers, the first is {quoted(lacking[0].name)}"
    if base is None:
        depends = any(parameter.needs_base for parameter in lacking)
        one = len(titles) == 1
        if depends:
            why = f"change{'s' if one else ''} a weight by its own values"
        else:
            why = f"do{'es' if one else ''} not store how large a weight is"
        raise NeedsBaseError(
            f"{' and '.join(titles)} {why}, so the change exists only together with the model that was "
            f"trained on: give the base model ({where})"
        )
    raise NeedsBaseError(
        f"the base model has no weight, or one that is packed (quantised), for layers of "
        f"{' and '.join(titles)}, whose change depends on it: give the model that was trained on, "
        f"in fp16, bf16 or fp8 ({where})"
    )


def _titles_that_need_a_base(parameter: ParameterPlan) -> Iterator[str]:
    """What of the adapters of ``parameter`` nothing but a weight can tell, in words."""
    for adapter in (c.adapter for c in parameter.contributions):
        if not parameter.needs_base:
            yield from adapter.titles
            continue
        yield from (item.title for item in adapter.weight_components if item.needs_weight)
        if adapter.magnitude is not None:
            yield adapter.magnitude.title


def _notes(parameters: Sequence[ParameterPlan], options: CombineOptions) -> list[str]:
    notes = []
    exact = options.rank.kind is RankKind.EXACT
    needs_fitting = options.output not in (SAME, AUTO) and not _holds_exactly(options.output)
    moved = [p for p in parameters if exact and needs_fitting and p.form != options.output]
    moved = [p for p in moved if not p.is_vector and p.route in (Route.FACTORS, Route.DENSE)]
    if moved:
        notes.append(
            f"{len(moved)} layers cannot be a {options.output} exactly: stored as LoRA or whole. "
            "Choose a rank to have them fitted"
        )
    whole = [p for p in parameters if p.form == FULL and not p.is_vector and p.route is Route.DENSE]
    if whole and exact and options.output != FULL:
        notes.append(
            f"{len(whole)} layers have no exact form smaller than the weight itself and are stored whole: "
            "choose a rank or a size budget for a smaller file"
        )
    flat = [p for p in parameters if p.form == FULL and p.shape is None and p.route is not Route.KEPT]
    if flat:
        notes.append(
            f"{len(flat)} layers are stored whole without the shape of their kernels, which only the base "
            "model tells: other programs may refuse those that are convolutions"
        )
    meeting = [p for p in parameters if sum(c.adapter.needs_weight for c in p.contributions[1:])]
    if meeting and not options.live_order:
        notes.append(
            f"on {len(meeting)} layers an adapter that depends on the weight follows another one. Applied "
            "live it sees the weight as the others left it; here every change is that of the base weight"
        )
    return notes


def _titles(parameter: ParameterPlan) -> str:
    if parameter.route is Route.KEPT:
        return " + ".join(parameter.contributions[0].adapter.titles)
    return "a vector" if parameter.is_vector else parameter.form
