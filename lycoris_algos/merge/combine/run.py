"""A planned combination carried out, one parameter at a time: memory holds one layer's change, and the
result.

With a size budget every layer is computed twice: once for its singular values, which decide how many ranks
each layer gets, and once for its factors. Where the device has no memory for a layer, that layer is computed
again on the CPU, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..._types import Cancel, Progress
from ...adapters import LayerAdapter
from ...adapters._dense import DenseDelta
from ...adapters.full import FullBias, FullWeight
from ...adapters.lokr import LoKr
from ...errors import BadValueError, CancelledError, LycorisError
from ...network import AdapterSet, Unmatched
from .change import Adapters, Change, Dense, Factors, difference, gram
from .fit import Fitted, fit_full, fit_loha, fit_lokr, fit_lora, spectrum, without_memory
from .methods import Kind
from .options import Output, RankKind, RankRule
from .plan import CombinePlan, ParameterPlan, Route, lone_coefficient, weights_for
from .ranks import Demand, allocate
from .recipe import combined_metadata
from .report import Combined, Outcome

_T = TypeVar("_T")
_OutOfMemory: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
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
    # Apple's GPUs have no float64, which the small decompositions need.
    chosen = torch.device("cpu" if torch.device(device).type == "mps" else device)
    run = _Run(plan, chosen, progress, cancel)
    ranks = run.budget() if plan.options.rank.kind is RankKind.BUDGET else {}
    found: dict[str, LayerAdapter] = {}
    outcomes: list[Outcome] = []
    for parameter in plan.parameters:
        adapter, outcome = run.combine(parameter, ranks.get(parameter.name))
        outcomes.append(outcome)
        if adapter is not None:
            known = found.get(parameter.layer, LayerAdapter())
            found[parameter.layer] = _joined(known, adapter, parameter.what)
    if not found:
        raise BadValueError(
            f"'{plan.options.method}' leaves nothing of these adapters: they share no layer, or cancel out"
        )
    return Combined(_adapter_set(plan, found, name), tuple(outcomes), plan)


def _joined(layer: LayerAdapter, adapter: LayerAdapter, what: str) -> LayerAdapter:
    if what == "bias":
        return replace(layer, bias_parts=adapter.parts)
    return replace(adapter, bias_parts=layer.bias_parts)


def _adapter_set(plan: CombinePlan, layers: dict[str, LayerAdapter], name: str) -> AdapterSet:
    sources = plan.sources
    unmatched = tuple(
        Unmatched(item.key, f"of '{source.adapters.name}': {item.reason}")
        for source in sources
        for item in source.adapters.unmatched
    )
    embeddings: dict[str, dict[str, Tensor]] = {}
    for source in sources:  # the first file that brings a word keeps it
        for word, vectors in source.adapters.embeddings.items():
            embeddings.setdefault(word, dict(vectors))
    notes = tuple(note for source in sources for note in source.adapters.notes)
    metadata = combined_metadata(plan, name)
    return AdapterSet(layers, unmatched, metadata, sources[0].adapters.dialect, name, notes, embeddings)


@dataclass
class _Run:
    """One run: where it computes, and how far it is."""

    plan: CombinePlan
    device: torch.device
    progress: Progress | None
    cancel: Cancel | None
    done: int = 0

    def _step(self, parameter: ParameterPlan) -> None:
        if self.cancel is not None and self.cancel():
            raise CancelledError("cancelled: nothing was combined")
        if self.progress is not None:
            self.progress(self.done, self.plan.steps, parameter.name)
        self.done += 1

    def _with_fallback(self, parameter: ParameterPlan, work: Callable[[torch.device], _T]) -> tuple[_T, bool]:
        """``work`` on the run's device, or on the CPU where that has no room; and whether it came to that."""
        try:
            return work(self.device), False
        except _OutOfMemory:
            if self.device.type == "cpu":
                raise
        except LycorisError as error:
            raise error.with_context(f"layer '{parameter.name}'") from error
        # Outside of the handler, so that the failed attempt's tensors are free.
        return work(torch.device("cpu")), True

    # ---- one parameter --------------------------------------------------------------------------

    def combine(self, parameter: ParameterPlan, rank: int | None) -> tuple[LayerAdapter | None, Outcome]:
        """(the stored adapter or None, what became of it) of one weight or bias."""
        self._step(parameter)
        (adapter, outcome), on_cpu = self._with_fallback(
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
            outcome = Outcome(parameter, None, 0, difference(change, None), None)
            return None, outcome
        adapter = self._finished(parameter, fitted.adapter, dtype)
        measured = difference(change, _plain(adapter))
        outcome = Outcome(parameter, fitted.rank, adapter.size_bytes, measured, fitted.lora_energy)
        return adapter, outcome

    def _change_and_fit(
        self, parameter: ParameterPlan, rank: int | None, device: torch.device
    ) -> tuple[Change, Fitted | None]:
        if parameter.route is Route.KRONECKER:
            merged, change = self._kronecker(parameter, device)
            return change, Fitted(merged, merged.core.rank if merged.core is not None else None)
        change = self._change(parameter, device)
        if rank == 0 or not _anything(change):
            return change, None
        return change, self._fit(parameter, change, rank)

    def _finished(self, parameter: ParameterPlan, adapter: LayerAdapter, dtype: torch.dtype) -> LayerAdapter:
        """On the CPU, in ``dtype``, in the vector's own class, and with the enlargement of its sources."""
        own = [c.adapter for c in parameter.contributions]
        if parameter.is_vector:
            adapter = _as_vector(adapter, own, parameter.what)
        adapter = replace(adapter, reshape=own[0].reshape).cast(dtype, torch.device("cpu"))
        adapter.require_finite()
        return adapter

    def _keep(
        self, parameter: ParameterPlan, dtype: torch.dtype, device: torch.device
    ) -> tuple[LayerAdapter | None, Outcome]:
        (own,) = parameter.contributions
        factor = lone_coefficient(own, self.plan.options, self.plan.sources)
        if factor == 0.0:
            return None, Outcome(parameter, None, 0, None, None)
        kept = own.adapter if factor == 1.0 else own.adapter.cast(torch.float32).multiplied(factor)
        assert kept is not None  # the plan looked
        kept = replace(kept.cast(dtype), bias_parts=())
        kept.require_finite()
        rank = None if kept.core is None else kept.core.rank
        measured = None
        if not kept.needs_weight and parameter.size != (0, 0):
            wanted = Adapters([(_plain(own.adapter), factor)], parameter.size, device)
            measured = difference(wanted, _plain(kept))
        return kept, Outcome(parameter, rank, kept.size_bytes, measured, None)

    # ---- the combined change --------------------------------------------------------------------

    def _change(self, parameter: ParameterPlan, device: torch.device) -> Change:
        """λ·(the method's D), as factors where the plan says so."""
        options = self.plan.options
        if options.live_order and parameter.needs_base and parameter.route is Route.DENSE:
            return Dense(self._replayed(parameter, device) * options.scaling)
        changes = [self._delta(parameter, index, device) for index in range(len(parameter.contributions))]
        method, layer = options.merge_method, parameter.name
        if method.linear:
            return _linear(changes, self._coefficients(parameter, changes))
        weights = [c.multiplier for c in parameter.contributions]
        if method.kind is Kind.SINGULAR_VECTORS:
            up, down = method([_as_factors(c) for c in changes], weights, told=options, layer=layer)
            return Factors(up * options.scaling, down)
        dense = [change.dense() for change in changes]
        return Dense(method(dense, weights, told=options, layer=layer) * options.scaling)

    def _coefficients(self, parameter: ParameterPlan, changes: Sequence[Change]) -> list[float]:
        options = self.plan.options
        weights = weights_for(parameter.contributions[0], self.plan.sources)
        present = [c.index for c in parameter.contributions]
        found = options.merge_method.coefficients(weights, present, lambda: gram(changes), options)
        return [options.scaling * c for c in found]

    def _delta(self, parameter: ParameterPlan, index: int, device: torch.device) -> Change:
        """ΔW of one contribution, in float32 on ``device``."""
        own = parameter.contributions[index]
        weight = self._base_weight(parameter, device) if own.adapter.needs_weight else None
        if parameter.route is Route.FACTORS:
            factors = own.adapter.low_rank(weight)
            assert factors is not None  # the plan knows the ranks
            return Factors(*(f.to(device, torch.float32) for f in factors))
        if weight is None:
            weight = without_memory(device, parameter.stored_shape)
        delta = own.adapter.delta(weight).to(device, torch.float32)
        return Dense(delta.reshape(parameter.size))

    def _base_weight(self, parameter: ParameterPlan, device: torch.device) -> Tensor:
        """W in float64: V − W of a small change loses digits that float32 does not have."""
        assert self.plan.base is not None  # the plan insists
        weight = self.plan.base.fetch(parameter.layer, parameter.what)
        return weight.to(device, torch.float64)

    def _replayed(self, parameter: ParameterPlan, device: torch.device) -> Tensor:
        """What the live stack makes of the base weight, less the base weight."""
        base = self._base_weight(parameter, device)
        changed = base.clone()
        for own in parameter.contributions:
            changed = changed + own.multiplier * own.adapter.delta(changed)
        return (changed - base).float().reshape(parameter.size)

    def _kronecker(self, parameter: ParameterPlan, device: torch.device) -> tuple[LayerAdapter, Change]:
        """LoKrs with a common factor: s·Σ cᵢ·w1ᵢ ⊗ w2, or with the roles exchanged."""
        cores = [c.adapter.core for c in parameter.contributions]
        lokrs = [core for core in cores if isinstance(core, LoKr)]
        coefs = self._coefficients(parameter, [])
        halves = [core.ready_whole(device, torch.float32) for core in lokrs]
        w1, w2 = halves[0]
        if all(core.shares_second(lokrs[0]) for core in lokrs):
            w1 = torch.stack([c * first for c, (first, _) in zip(coefs, halves, strict=True)]).sum(0)
        else:  # w1 holds each one's scale, so that is taken out of it before it is compared
            scales = [float((first * w1).sum() / w1.square().sum().clamp_min(1e-300)) for first, _ in halves]
            parts = [c * s * w for c, s, (_, w) in zip(coefs, scales, halves, strict=True)]
            w2 = torch.stack(parts).sum(0)
        entries = [(c.adapter, f) for c, f in zip(parameter.contributions, coefs, strict=True)]
        merged = LayerAdapter(core=LoKr.of(w1, w2, parameter.shape))
        return merged, Adapters(entries, parameter.size, device)

    # ---- the stored form ------------------------------------------------------------------------

    def _fit(self, parameter: ParameterPlan, change: Change, rank: int | None) -> Fitted:
        options = self.plan.options
        rule = options.rank if rank is None else RankRule(RankKind.FIXED, rank)
        if parameter.form is Output.FULL or parameter.is_vector:
            return fit_full(change, parameter.stored_shape)
        if parameter.form is Output.LOKR:
            first = _first_shape(parameter) if options.output is Output.SAME else None
            rule = rule if rank is None else RankRule(RankKind.BUDGET, rank)
            return fit_lokr(change, parameter.shape, rule, first, options.factor)
        if parameter.form is Output.LOHA:
            return fit_loha(change, rule)
        fitted = fit_lora(change, parameter.shape, rule)
        if options.output is Output.AUTO and rank is None and fitted.rank is not None:
            rows, columns = parameter.size
            if fitted.rank * (rows + columns) >= rows * columns:
                return fit_full(change, parameter.stored_shape)
        return fitted

    def budget(self) -> dict[str, int]:
        """How many ranks each parameter gets for the budget, by name."""
        demands: dict[str, Demand] = {}
        fixed = 1024
        for parameter in self.plan.parameters:
            self._step(parameter)
            dtype = self.plan.options.dtype or _stored_dtype(parameter)
            overhead = 4 * (_ENTRY + len(parameter.layer) + 16)
            if parameter.is_vector or parameter.route is Route.KEPT:
                fixed += overhead + parameter.size[0] * max(1, parameter.size[1]) * dtype.itemsize
                continue
            values, _ = self._with_fallback(
                parameter,
                lambda device, p=parameter: spectrum(self._change(p, device)),  # type: ignore[misc]
            )
            cost = sum(parameter.size) * dtype.itemsize
            if parameter.form is Output.LOHA:  # a rank of it costs two of a LoRA
                values, cost, overhead = values[::2], 2 * cost, 2 * overhead
            demands[parameter.name] = Demand(values, cost, overhead)
        return allocate(demands, int(self.plan.options.rank.value * 1e6), fixed)


def _anything(change: Change) -> bool:
    if isinstance(change, Factors):
        return bool(change.up.any()) and bool(change.down.any())
    return bool(change.dense().any())


def _as_factors(change: Change) -> tuple[Tensor, Tensor]:
    if isinstance(change, Factors):
        return change.up, change.down
    matrix = change.dense()
    return torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device), matrix


def _linear(changes: Sequence[Change], coefs: Sequence[float]) -> Change:
    """Σ cᵢ·Dᵢ: factors side by side where all are factors."""
    used = [(change, c) for change, c in zip(changes, coefs, strict=True) if c != 0.0]
    factors = [(change, c) for change, c in used if isinstance(change, Factors)]
    if used and len(factors) == len(used):
        up = torch.cat([change.up * c for change, c in factors], dim=1)
        return Factors(up, torch.cat([change.down for change, _ in factors]))
    total = torch.zeros(changes[0].size, device=changes[0].device)
    for change, c in used:
        total.add_(change.dense(), alpha=c)
    return Dense(total)


def _as_vector(adapter: LayerAdapter, own: Sequence[LayerAdapter], what: str) -> LayerAdapter:
    """A norm stays a norm, in the key it was stored under; anything else is a plain difference."""
    (part,) = adapter.parts
    assert isinstance(part, DenseDelta)
    classes = {type(item) for layer in own for item in layer.weight_components}
    kind = next(iter(classes)) if len(classes) == 1 else None
    if kind is None or not issubclass(kind, DenseDelta) or kind.needs_weight:
        kind = FullBias if what == "bias" else FullWeight
    return LayerAdapter(parts=(kind(part.change),))


def _first_shape(parameter: ParameterPlan) -> tuple[int, int] | None:
    core = parameter.contributions[0].adapter.core
    return core.first_shape if isinstance(core, LoKr) else None


def _plain(adapter: LayerAdapter) -> LayerAdapter:
    """Without its bias and its enlargement, which the comparison of weights has nothing to do with."""
    return replace(adapter, bias_parts=(), reshape=None)


def _stored_dtype(parameter: ParameterPlan) -> torch.dtype:
    """The widest dtype that the contributions store their factors in."""
    found = {
        value.dtype
        for c in parameter.contributions
        for item in c.adapter.components()
        for _, value in item.tensors()
        if value.dtype.is_floating_point
    }
    if len(found) == 1:
        return found.pop()
    wide = [dtype for dtype in found if dtype.itemsize > 1]
    return max(wide, key=lambda dtype: dtype.itemsize) if len(set(wide)) == 1 else torch.float32
