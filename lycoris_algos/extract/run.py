"""Runs the plan of an extraction: memory holds one weight of both models for each worker, and the result.

Where layers are compared with each other (a size budget, ``auto``), every weight is read twice: once for what
each form would keep, and once for the fit that was chosen.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._types import Cancel, Progress
from ..adapters import FitRequest, Fitted, LayerAdapter, fitted_layer, joined, residual_elements, whole_change
from ..deltas import Layerwise, Outcome, computing_device, difference
from ..errors import BadValueError
from ..network import AdapterSet
from ..network.convert import formed, stored
from ..network.respelling import respelled, writable
from ..ops.ranks import COUNTED
from ..ops.workers import Workers
from ..structures import Dense, pays
from ..text import Brief, quoted
from .choice import Choice, Comparison, Quote, choices, priced_ranks, quote
from .forms import asked, fits
from .options import AUTO, DORA, FULL
from .plan import TITLES, ExtractPlan, ParameterPlan
from .recipe import extracted_metadata
from .report import Extracted

# What a tuned model may have been rounded to, beside its base.
_ROUNDED = (torch.float16, torch.bfloat16)
_LOOK = 4096


@torch.no_grad()
def run_extract(
    plan: ExtractPlan,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    name: str = "extracted",
) -> Extracted:
    """Carries out ``plan``, computing on ``device``; the result lies on the CPU and is called ``name``.

    Raises CancelledError between layers when ``cancel`` says so, BadValueError for two models without any
    difference and for a size that is too small, and what reading raises, naming the layer.
    """
    chosen = computing_device(device)
    layers: dict[str, LayerAdapter] = {}
    outcomes: list[Outcome] = []
    broken: list[str] = []
    comparison: Comparison | None = None
    with Workers(chosen) as workers:
        run = _Run(plan, Layerwise(chosen, workers, plan.steps, progress, cancel))
        wanted: dict[str, Choice] | None = None
        if plan.options.priced:
            all_of_them = run.layers.results(plan.parameters, run.quote)
            quotes = {parameter.name: own for parameter, own in all_of_them if own is not None}
            wanted, comparison = choices(plan, quotes) if quotes else ({}, None)
        for parameter, made in run.layers.results(plan.parameters, lambda item: run.extract(item, wanted)):
            if made.broken:
                broken.append(parameter.name)
            if made.outcome is not None:
                outcomes.append(made.outcome)
            if made.adapter is not None:
                layers[parameter.layer] = joined(layers.get(parameter.layer), made.adapter, parameter.what)
    if progress is not None:
        progress(plan.steps, plan.steps, "extracted")
    _require_something(plan, layers, outcomes, broken)
    adapters = _adapter_set(plan, layers, name)
    return Extracted(adapters, tuple(outcomes), plan, tuple(broken), comparison)


def _require_something(
    plan: ExtractPlan, layers: Mapping[str, LayerAdapter], outcomes: list[Outcome], broken: list[str]
) -> None:
    if layers:
        return
    first, second = map(quoted, plan.names)
    if broken:
        raise BadValueError(
            f"every weight in which {second} differs from {first} holds NaN or infinity, such as "
            f"{quoted(broken[0])}: one of the files is damaged"
        )
    if outcomes:
        raise BadValueError("the size has no room for a single layer: ask for a larger one")
    raise BadValueError(
        f"{second} is the same as {first} in all {len(plan.parameters)} weights and biases that were "
        "compared: there is nothing to extract"
    )


def _adapter_set(plan: ExtractPlan, layers: dict[str, LayerAdapter], name: str) -> AdapterSet:
    dialect = plan.options.dialect
    if dialect is not None:  # what is planned in another's names, or has no name in it
        spelled = respelled(layers, writable(dialect), plan.base, adding=True)
        layers = stored(formed(spelled, None, insisting=True), spelled, layers, None)
    return AdapterSet(
        layers, metadata=extracted_metadata(plan, name, layers), dialect=plan.dialect, name=name
    )


@dataclass(frozen=True, eq=False)
class _Made(Brief):
    """What became of one parameter; nothing of it for one that is the same in both models."""

    adapter: LayerAdapter | None = None
    outcome: Outcome | None = None
    broken: bool = False


@dataclass(frozen=True, eq=False)
class _Change(Brief):
    """W and ΔW of one parameter in float32, as matrices; W where a form may need it."""

    delta: Tensor
    weight: Tensor | None


@dataclass
class _Run(Brief):
    """One run through ``layers``."""

    plan: ExtractPlan
    layers: Layerwise
    #: A loaded model need not be able to give several weights at a time.
    fetching: threading.Lock = field(default_factory=threading.Lock)

    # ---- the change -----------------------------------------------------------------------------

    def _change(self, parameter: ParameterPlan, device: torch.device) -> _Change | None:
        """None where both are the same. Not finite where one of them is not."""
        with self.fetching:
            base = self._read(parameter, device, tuned=False)
            tuned = self._read(parameter, device, tuned=True)
        if _same(base, tuned):
            return None
        forms = self.plan.forms(parameter)
        if DORA in forms:
            return _Change((tuned - base).reshape(parameter.size), base.reshape(parameter.size))
        # In the place of W, which nothing needs any more.
        return _Change(base.neg_().add_(tuned).reshape(parameter.size), None)

    def _read(self, parameter: ParameterPlan, device: torch.device, *, tuned: bool) -> Tensor:
        model = self.plan.tuned if tuned else self.plan.base
        half = model.index.half(parameter.is_text)
        assert half is not None  # the plan has found the parameter there
        weight = model.read(half, parameter.tuned if tuned else parameter.base)
        return weight.to(device, torch.float32)

    def _request(self, parameter: ParameterPlan, change: _Change) -> FitRequest:
        plan = self.plan
        return FitRequest(
            Dense(change.delta),
            parameter.shape,
            plan.rule(parameter),
            factor=plan.options.factor,
            weight=change.weight,
            most=priced_ranks(plan, parameter) if plan.options.priced else 0,
            rivals=plan.options.algorithm == AUTO,
        )

    # ---- what it would take ---------------------------------------------------------------------

    def quote(self, parameter: ParameterPlan) -> Quote | None:
        """What can be had for ``parameter``; None for one that is not stored."""
        return self.layers.with_fallback(parameter, lambda device: self._quote(parameter, device))[0]

    def _quote(self, parameter: ParameterPlan, device: torch.device) -> Quote | None:
        change = self._change(parameter, device)
        if change is None or not _is_finite(change.delta):
            return None
        return quote(self.plan, parameter, self._request(parameter, change))

    # ---- the stored form ------------------------------------------------------------------------

    def extract(self, parameter: ParameterPlan, wanted: Mapping[str, Choice] | None) -> _Made:
        """``parameter`` stored as ``wanted`` has it, or by the plan's rule where that is None."""
        made, on_cpu = self.layers.with_fallback(
            parameter, lambda device: self._extract(parameter, wanted, device)
        )
        if made.outcome is None or not on_cpu:
            return made
        return replace(made, outcome=replace(made.outcome, on_cpu=True))

    def _extract(
        self, parameter: ParameterPlan, wanted: Mapping[str, Choice] | None, device: torch.device
    ) -> _Made:
        change = self._change(parameter, device)
        if change is None:
            return _Made()
        if not _is_finite(change.delta):
            return _Made(broken=True)
        request = self._request(parameter, change)
        if wanted is None:
            form, fitted = self._by_rule(parameter, request)
        elif parameter.name in wanted:
            choice = wanted[parameter.name]
            form = choice.form
            fitted = None if form == FULL else fits(form).fit(asked(request.priced(choice.price), form))
        else:
            missed = difference(request.change, None)
            return _Made(outcome=Outcome(parameter.name, "left out", None, 0, missed))
        if fitted is None:
            adapter = whole_change(change.delta.reshape(parameter.shape), parameter.what)
            return self._finished(
                parameter, request, adapter, "vector" if parameter.is_vector else TITLES[FULL]
            )
        adapter = fitted_layer(fitted)
        sparsity = self.plan.options.sparsity
        if sparsity is not None and fitted.magnitude is None:
            left = change.delta - adapter.delta(parameter.shape).reshape(change.delta.shape)
            adapter = fitted_layer(fitted, residual_elements(left, sparsity))
        return self._finished(parameter, request, adapter, TITLES[form], fitted)

    def _by_rule(self, parameter: ParameterPlan, request: FitRequest) -> tuple[str, Fitted | None]:
        """(form, what was fitted), or None where all of the change is no larger than the fit."""
        forms = self.plan.forms(parameter)
        if not forms:
            return FULL, None
        (form,) = forms
        rule = request.rule
        if rule.kind in COUNTED and form != "lokr" and not pays(int(rule.value), *parameter.size):
            return FULL, None
        fitted = fits(form).fit(asked(request, form))
        numbers = sum(value.numel() for _, value in fitted.stored.tensors())
        return form, fitted if numbers < math.prod(parameter.size) else None

    def _finished(
        self,
        parameter: ParameterPlan,
        request: FitRequest,
        adapter: LayerAdapter,
        title: str,
        fitted: Fitted | None = None,
    ) -> _Made:
        """``adapter`` on the CPU in its dtype, and how far it is from the change then."""
        dtype, cpu = self.plan.options.dtype, torch.device("cpu")
        device = next(request.change.tensors()).device
        stored = adapter.filling(dtype).stored_as(dtype, cpu)
        if adapter.magnitude is not None:
            # Lengths of W itself: half the digits of their change would be lost.
            stored = replace(stored, magnitude=adapter.magnitude.cast(torch.float32, cpu))
            assert request.weight is not None
            weight = request.weight.reshape(parameter.shape)
            got = Dense(stored.delta(weight.double()).to(weight).reshape(parameter.size))
            measured = difference(request.change, got)
        else:
            got_structure = stored.structure(parameter.shape).ready(device, torch.float32)
            measured = difference(request.change, got_structure)
        rank = None if fitted is None else fitted.rank
        share = None if fitted is None else fitted.lora_energy
        return _Made(stored, Outcome(parameter.name, title, rank, stored.size_bytes, measured, share))


def _same(base: Tensor, tuned: Tensor) -> bool:
    """Whether the two are the same, or one is the other rounded to fewer digits."""
    if torch.equal(base, tuned):
        return True
    first, second = base.flatten()[:_LOOK], tuned.flatten()[:_LOOK]
    return any(
        torch.equal(one.to(dtype).float(), other) and torch.equal(whole.to(dtype).float(), rest)
        for dtype in _ROUNDED
        for one, other, whole, rest in ((first, second, base, tuned), (second, first, tuned, base))
    )


def _is_finite(change: Tensor) -> bool:
    return bool(torch.isfinite(change.sum(dtype=torch.float64)))
