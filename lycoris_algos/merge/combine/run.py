"""Runs the plan of a combination: memory holds one layer's change for each worker, and the result.

With a size budget every layer is computed twice: once for its singular values, which decide how many ranks
each layer gets, and once for its factors. Where the device has no memory for a layer, that layer is computed
again on the CPU, and the result says so.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..._types import Cancel, Progress
from ...adapters import (
    Component,
    Extra,
    FitRequest,
    Fitted,
    LayerAdapter,
    fittable,
    fitted_layer,
    joined,
    whole_change,
)
from ...deltas import (
    Layerwise,
    Offer,
    Outcome,
    allocate,
    change_of,
    computing_device,
    difference,
    factors_of,
    gram,
    offers_of_ranks,
    weighted_sum,
)
from ...errors import BadValueError
from ...formats import dialect_of
from ...network import AdapterSet, Unmatched
from ...network.convert import formed, stored
from ...network.peft_form import WITHOUT_ALPHA
from ...network.respelling import in_one_dialect
from ...ops.ranks import RankKind, RankRule
from ...ops.workers import Workers
from ...structures import Dense, LowRank, Structure, Sum, pays
from ...text import Brief, quoted
from .methods import Kind
from .options import AUTO, FULL, SAME
from .plan import CombinePlan, ParameterPlan, Route, lone_coefficient, weights_for
from .recipe import combined_metadata
from .report import Combined, form_of

# Bytes of one tensor's entry in a file's header, besides its name.
_ENTRY = 90


@torch.no_grad()
def run_combine(
    plan: CombinePlan,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    name: str = "combined",
) -> Combined:
    """Carries out ``plan``, computing on ``device``; the result lies on the CPU and is called ``name``.

    Raises CancelledError between layers when ``cancel`` says so, BadValueError for a budget that is too
    small, and what adapters raise, naming the layer.
    """
    chosen = computing_device(device)
    layers: dict[str, LayerAdapter] = {}
    outcomes: list[Outcome] = []
    with Workers(chosen) as workers:
        run = _Run(plan, Layerwise(chosen, workers, plan.steps, progress, cancel))
        ranks = run.budget() if plan.options.rank.kind is RankKind.BUDGET else {}
        for parameter, (adapter, outcome) in run.layers.results(
            plan.parameters, lambda item: run.combine(item, ranks.get(item.name))
        ):
            outcomes.append(outcome)
            if adapter is not None:
                layers[parameter.layer] = joined(layers.get(parameter.layer), adapter, parameter.what)
    if progress is not None:
        progress(plan.steps, plan.steps, "combined")
    if not layers:
        raise BadValueError(
            f"'{plan.options.method}' leaves nothing of these adapters: they share no layer, or cancel out"
        )
    adapters, note = _adapter_set(plan, layers, name)
    return Combined(adapters, tuple(outcomes), plan, note)


def _adapter_set(plan: CombinePlan, layers: dict[str, LayerAdapter], name: str) -> tuple[AdapterSet, str]:
    """(``layers`` as one file holds them, in one dialect if they can be; what is to be said about it)."""
    sources = plan.sources
    spoken = sorted({dialect_of(layer).name for layer in layers})
    spelled, dialect = in_one_dialect(layers, [source.adapters.dialect for source in sources], plan.base)
    layers = stored(formed(spelled, None, insisting=False), spelled, layers, None)
    note = f"the files are spelled as {' and '.join(spoken)}, the result as {dialect}"
    if len(spoken) == 1:
        note = ""
    elif dialect is None:
        note = (
            f"the result is spelled in a mixed way ({', '.join(spoken)}), since names alone do not tell one "
            "spelling for all layers: other programs may not find some. Give the model, which tells"
        )
    unmatched = tuple(
        Unmatched(item.key, f"of {quoted(source.adapters.name)}: {item.reason}")
        for source in sources
        for item in source.adapters.unmatched
    )
    embeddings: dict[str, dict[str, Tensor]] = {}
    for source in sources:  # the first file that brings a word keeps it
        for word, vectors in source.adapters.embeddings.items():
            embeddings.setdefault(word, dict(vectors))
    notes = tuple(note for source in sources for note in source.adapters.notes)
    metadata = combined_metadata(plan, name, layers)
    written = dialect or sources[0].adapters.dialect
    return AdapterSet(layers, unmatched, metadata, written, name, notes, embeddings), note


@dataclass
class _Run(Brief):
    """One run through ``layers``."""

    plan: CombinePlan
    layers: Layerwise
    #: A loaded model need not be able to give several weights at a time.
    fetching: threading.Lock = field(default_factory=threading.Lock)

    # ---- one parameter --------------------------------------------------------------------------

    def combine(self, parameter: ParameterPlan, rank: int | None) -> tuple[LayerAdapter | None, Outcome]:
        """(the stored adapter or None, what became of it) of one weight or bias."""
        (adapter, outcome), on_cpu = self.layers.with_fallback(
            parameter, lambda device: self._combine(parameter, rank, device)
        )
        return adapter, replace(outcome, on_cpu=on_cpu)

    def _combine(
        self, parameter: ParameterPlan, rank: int | None, device: torch.device
    ) -> tuple[LayerAdapter | None, Outcome]:
        dtype = self.plan.options.dtype or _stored_dtype(parameter)
        if parameter.route is Route.KEPT:
            return self._keep(parameter, dtype, device)
        change, fitted = self._change_and_fit(parameter, rank, device)
        if fitted is None:
            return None, Outcome(parameter.name, form_of(parameter), None, 0, difference(change, None))
        adapter = self._finished(parameter, fitted.stored, dtype)
        measured = difference(change, _structure(adapter, parameter, device))
        return adapter, Outcome(
            parameter.name,
            form_of(parameter),
            fitted.rank,
            adapter.size_bytes,
            measured,
            fitted.lora_energy,
        )

    def _change_and_fit(
        self, parameter: ParameterPlan, rank: int | None, device: torch.device
    ) -> tuple[Structure, Fitted | None]:
        if parameter.route is Route.SUMMED:
            return self._summed(parameter, device)
        change = self._change(parameter, device)
        return change, None if rank == 0 or not _anything(change) else self._fit(parameter, change, rank)

    def _finished(self, parameter: ParameterPlan, stored: Component, dtype: torch.dtype) -> LayerAdapter:
        """On the CPU, in ``dtype``, in the vector's own class, and with the enlargement of its sources."""
        own = [c.adapter for c in parameter.contributions]
        adapter = fitted_layer(Fitted(stored))
        if parameter.is_vector:
            adapter = _as_vector(stored, own, parameter.what)
        return self._stored(replace(adapter, reshape=own[0].reshape), dtype, torch.device("cpu"))

    def _stored(
        self, adapter: LayerAdapter, dtype: torch.dtype, device: torch.device | None = None
    ) -> LayerAdapter:
        """``adapter`` in ``dtype``. Raises BadValueError for what that cannot hold."""
        if self.plan.sources[0].adapters.dialect not in WITHOUT_ALPHA:
            adapter = adapter.filling(dtype)
        return adapter.stored_as(dtype, device)

    def _keep(
        self, parameter: ParameterPlan, dtype: torch.dtype, device: torch.device
    ) -> tuple[LayerAdapter | None, Outcome]:
        (own,) = parameter.contributions
        factor = lone_coefficient(own, self.plan.options, self.plan.sources)
        if factor == 0.0:
            return None, Outcome(parameter.name, form_of(parameter), None, 0, None)
        kept = own.adapter if factor == 1.0 else own.adapter.cast(torch.float32).multiplied(factor)
        assert kept is not None  # the plan looked
        kept = self._stored(replace(kept, bias_extras=()), dtype)
        rank = None if kept.algorithm is None else kept.algorithm.rank
        measured = None
        if not kept.needs_weight and parameter.size != (0, 0):
            wanted = Sum((_structure(own.adapter, parameter, device),), (factor,))
            measured = difference(wanted, _structure(kept, parameter, device))
        return kept, Outcome(parameter.name, form_of(parameter), rank, kept.size_bytes, measured)

    # ---- the combined change --------------------------------------------------------------------

    def _change(self, parameter: ParameterPlan, device: torch.device) -> LowRank | Dense:
        """λ·(the method's D), as factors where the plan says so."""
        options = self.plan.options
        if options.live_order and parameter.needs_base and parameter.route is Route.DENSE:
            return Dense(self._replayed(parameter, device) * options.scaling)
        changes = [self._delta(parameter, index, device) for index in range(len(parameter.contributions))]
        method, layer = options.merge_method, parameter.name
        if method.linear:
            return weighted_sum(changes, self._coefficients(parameter, changes))
        weights = [c.multiplier for c in parameter.contributions]
        if method.kind is Kind.SINGULAR_VECTORS:
            up, down = method([factors_of(c) for c in changes], weights, told=options, layer=layer)
            return LowRank(up * options.scaling, down)
        dense = [change.delta() for change in changes]
        return Dense(method(dense, weights, told=options, layer=layer) * options.scaling)

    def _coefficients(self, parameter: ParameterPlan, changes: Sequence[Structure]) -> list[float]:
        options = self.plan.options
        weights = weights_for(parameter.contributions[0], self.plan.sources)
        present = [c.index for c in parameter.contributions]
        coefficients = options.merge_method.coefficients(weights, present, lambda: gram(changes), options)
        return [options.scaling * c for c in coefficients]

    def _delta(self, parameter: ParameterPlan, index: int, device: torch.device) -> LowRank | Dense:
        """ΔW of one contribution, in float32 on ``device``."""
        own = parameter.contributions[index].adapter
        weight = self._base_weight(parameter, device) if own.needs_weight else None
        by_factors = parameter.route is Route.FACTORS
        change = change_of(own, parameter.stored_shape, device, weight=weight, by_factors=by_factors)
        return change if by_factors else Dense(change.delta().reshape(parameter.size))

    def _base_weight(self, parameter: ParameterPlan, device: torch.device) -> Tensor:
        """W in float64: V − W of a small change loses digits that float32 does not have."""
        assert self.plan.base is not None  # the plan insists
        with self.fetching:
            weight = self.plan.base.fetch(parameter.layer, parameter.what)
        return weight.to(device, torch.float64)

    def _replayed(self, parameter: ParameterPlan, device: torch.device) -> Tensor:
        """What the live stack makes of the base weight, less the base weight."""
        base = self._base_weight(parameter, device)
        changed = base.clone()
        for own in parameter.contributions:
            changed = changed + own.multiplier * own.adapter.delta(changed)
        return (changed - base).float().reshape(parameter.size)

    def _summed(self, parameter: ParameterPlan, device: torch.device) -> tuple[Structure, Fitted]:
        """(Σ cᵢ·ΔWᵢ, which is not formed; the one algorithm that it is)."""
        own = [c.adapter for c in parameter.contributions]
        coefs = self._coefficients(parameter, [])
        algorithms = [adapter.plain for adapter in own]
        first, *_ = known = [algorithm for algorithm in algorithms if algorithm is not None]
        merged = first.summed(known, coefs, parameter.shape)
        changes = tuple(_structure(adapter, parameter, device) for adapter in own)
        return Sum(changes, tuple(coefs)), Fitted(merged, merged.rank)

    # ---- the stored form ------------------------------------------------------------------------

    def _fit(self, parameter: ParameterPlan, change: LowRank | Dense, rank: int | None) -> Fitted:
        options, forms = self.plan.options, fittable()
        rule = options.rank.of(parameter.shape) if rank is None else RankRule(RankKind.BUDGET, rank)
        like = parameter.contributions[0].adapter.plain if options.output == SAME else None
        request = FitRequest(change, parameter.shape, rule, like, options.factor)
        fitted = forms[FULL if parameter.is_vector else parameter.form].fit(request)
        unasked = options.output == AUTO and rank is None
        if unasked and fitted.rank is not None and not pays(fitted.rank, *parameter.size):
            return forms[FULL].fit(request)
        return fitted

    def budget(self) -> dict[str, int]:
        """How many ranks each parameter gets for the budget, by name."""
        demands: dict[str, list[Offer]] = {}
        fixed = 1024
        for parameter, values in self.layers.results(self.plan.parameters, self._spectrum):
            dtype = self.plan.options.dtype or _stored_dtype(parameter)
            overhead = 4 * (_ENTRY + len(parameter.layer) + 16)
            if values is None:
                fixed += overhead + parameter.size[0] * max(1, parameter.size[1]) * dtype.itemsize
                continue
            numbers = fittable()[parameter.form].numbers_per_rank(*parameter.size)
            times = numbers // sum(parameter.size)  # a rank of a LoHa costs two of a LoRA
            cost = numbers * dtype.itemsize
            most = self.plan.options.rank.of(parameter.shape).most or values.numel()
            own = values[::times][: max(1, most // times)]
            demands[parameter.name] = offers_of_ranks(own, cost, times * overhead)
        chosen = allocate(demands, int(self.plan.options.rank.value * 1e6), fixed)
        return {name: _ranks(chosen.get(name)) for name in demands}

    def _spectrum(self, parameter: ParameterPlan) -> Tensor | None:
        """The singular values of a change that gets ranks; None of others."""
        if parameter.is_vector or parameter.route is Route.KEPT:
            return None
        return self.layers.with_fallback(
            parameter, lambda device: self._change(parameter, device).spectrum().cpu()
        )[0]


def _ranks(offer: Offer | None) -> int:
    """How many ranks ``offer`` is for; 0 for none."""
    return 0 if offer is None else int(str(offer.what))


def _anything(change: LowRank | Dense) -> bool:
    return all(bool(tensor.any()) for tensor in change.tensors())


def _structure(adapter: LayerAdapter, parameter: ParameterPlan, device: torch.device) -> Structure:
    """The change of ``adapter``, which does not depend on W, without its enlargement, ready in float32."""
    return replace(adapter, reshape=None).structure(parameter.stored_shape).ready(device, torch.float32)


def _as_vector(stored: Component, own: Sequence[LayerAdapter], what: str) -> LayerAdapter:
    """A norm stays a norm, in the key it was stored under; anything else is a plain difference."""
    (change,) = (value for _, value in stored.tensors())
    kinds = {type(item): item for layer in own for item in layer.weight_components}
    (only,) = kinds.values() if len(kinds) == 1 else (None,)
    held = only.holding(change) if isinstance(only, Extra) else None
    return whole_change(change, what) if held is None else LayerAdapter(extras=(held,))


def _stored_dtype(parameter: ParameterPlan) -> torch.dtype:
    """The widest dtype that the contributions store their factors in."""
    dtypes = {
        value.dtype
        for c in parameter.contributions
        for item in c.adapter.components()
        for _, value in item.tensors()
        if value.dtype.is_floating_point
    }
    if len(dtypes) == 1:
        return dtypes.pop()
    wide = [dtype for dtype in dtypes if dtype.itemsize > 1]
    return max(wide, key=lambda dtype: dtype.itemsize) if len(set(wide)) == 1 else torch.float32
