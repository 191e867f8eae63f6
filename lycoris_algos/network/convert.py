"""Converts an adapter set to another dtype, dialect or strength; its deltas stay the same.

- A *multiplier* is stored in a factor of each algorithm that is linear in one; the others (DoRA, OFT …) need
  their change to be computed against the base weight, which is CombineLyCORIS' work, and are refused.
- A *dialect* has its own names for layers, and other layers where a model is fused (respelling.py). diffusers
  and PEFT also have no alpha, no Tucker kernels, and only some algorithms (peft_form.py). They refuse a file
  that holds anything else, so that is left out of theirs and a note names it; elsewhere it is written again.
- Everything is computed in float32 and rounded once, to the new dtype. Factors for fp8 are multiplied so that
  they use its range, where alpha may make up for it, and a note says what the rounding takes.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from ..adapters import LayerAdapter
from ..errors import BadValueError, NoSpellingError
from ..formats import Dialect, dialect_of, is_text_layer
from ..ops.rounding import STOCHASTIC
from ..text import listed, quoted
from .adapter_set import AdapterSet
from .bundles import embedding_tensors
from .corrections import MARK
from .load import still_unread
from .multipliers import Multipliers
from .peft_form import PEFT_METADATA, WITHOUT_ALPHA, peft_form, peft_metadata
from .recipe import RECIPE, source_record
from .respelling import KnownNames, Respelled, respelled, writable
from .roles import roles_of
from .stack import StackEntry, check_multipliers

_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")


def convert(
    adapter_set: AdapterSet,
    *,
    dtype: torch.dtype | None = None,
    dialect: str | None = None,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    multipliers: tuple[Multipliers, ...] = (),
    known: KnownNames | None = None,
    title: str | None = None,
    embeddings: bool = True,
) -> AdapterSet:
    """``adapter_set`` with its multipliers folded in, stored in ``dtype`` as ``dialect`` spells it.

    None keeps a dtype or the dialect; ``known`` tells other names of the layers, and which of them take
    ``strength_clip``; ``multipliers`` are as for ``StackEntry``; bundled ``embeddings`` come along or not,
    where the dialect allows.

    Raises BadValueError for a multiplier that cannot be folded in (naming CombineLyCORIS) or a number that
    does not fit ``dtype``, and NoSpellingError, naming the layer, for what ``dialect`` has no word for.
    """
    target = None if dialect is None else writable(dialect)
    entry = StackEntry(adapter_set, strength_model, strength_clip, multipliers)
    role_of = roles_of(known)
    check_multipliers([entry], [role_of])
    folded: dict[str, LayerAdapter] = {}
    for name, layer in adapter_set.items():
        is_text = (known.is_text if known is not None else is_text_layer)(name)
        multiplier = entry.multiplier(name, is_text, role_of)
        if multiplier != 0.0:
            folded[name] = layer if multiplier == 1.0 else _multiplied(name, layer, multiplier)
    if not folded:
        raise BadValueError("the strength of every layer is 0, so nothing would be stored")
    if target is None:
        spelled = {name: Respelled(layer, name) for name, layer in folded.items()}
    else:
        spelled = respelled(folded, target, known)
    exact = formed(spelled, dtype, insisting=target is not None)
    layers = stored(exact, spelled, adapter_set, dtype)
    described = _metadata(adapter_set, dtype, target, strength_model, strength_clip, multipliers, title)
    described.update(peft_metadata(layers))
    written = adapter_set.dialect if target is None else target.name
    unread = still_unread(adapter_set.unread, layers)
    converted = replace(
        adapter_set,
        layers=layers,
        metadata=described,
        dialect=written,
        embeddings=adapter_set.embeddings if embeddings else {},
        notes=(*adapter_set.notes, *_rounding_notes(exact, layers, dtype), *_left_out(adapter_set, unread)),
        unread=unread,
    )
    return converted if target is None else _without_strangers(converted, target)


def _without_strangers(adapter_set: AdapterSet, dialect: Dialect) -> AdapterSet:
    """``adapter_set`` without what ``dialect`` would refuse the whole file for: diffusers' and PEFT's do."""
    names = [*adapter_set.unread, *embedding_tensors(adapter_set.embeddings)]
    if dialect.name not in WITHOUT_ALPHA or not names:
        return adapter_set
    note = (
        f"{len(names)} tensors are left out, since {dialect.title} refuses a file that holds what is no "
        f"adapter to it: {listed(names)}"
    )
    return replace(adapter_set, unread={}, embeddings={}, notes=(*adapter_set.notes, note))


def _left_out(adapter_set: AdapterSet, unread: Collection[str]) -> list[str]:
    """What cannot be carried along."""
    names = [key for key in adapter_set.unread if key not in unread]
    if not names:
        return []
    return [f"left out, because the new names of layers would make them changes: {listed(names)}"]


# ---- numbers --------------------------------------------------------------------------------------------


def _multiplied(name: str, layer: LayerAdapter, multiplier: float) -> LayerAdapter:
    if not layer.linear:
        titles = " + ".join(layer.titles)
        raise BadValueError(
            f"layer {quoted(name)}: a strength of {multiplier:g} cannot be stored in {titles}, whose change "
            "is not in proportion to any of its tensors. Save it at strength 1, or use CombineLyCORIS with "
            "the base model to store its change as a LoRA or whole"
        )
    # float32 first, so that the result is rounded once.
    folded = layer.cast(torch.float32).multiplied(multiplier)
    assert folded is not None  # linear
    return folded


def formed(
    spelled: Mapping[str, Respelled], dtype: torch.dtype | None, *, insisting: bool
) -> dict[str, LayerAdapter]:
    """``spelled`` in the form that each one's dialect has, at a scale that suits ``dtype`` if it is given.

    What has no such form is refused, by NoSpellingError, if ``insisting``, and else left as it is.
    """
    layers: dict[str, LayerAdapter] = {}
    for name, layer in spelled.items():
        adapter, dialect = layer.adapter, dialect_of(name)
        if dialect.name in WITHOUT_ALPHA:
            try:
                adapter = peft_form(adapter, dialect.title)
            except NoSpellingError as error:
                if insisting:
                    raise error.with_context(f"layer {quoted(layer.source)}") from error
        elif dtype is not None:
            adapter = adapter.filling(dtype)
        layers[name] = adapter
    return layers


def stored(
    formed: Mapping[str, LayerAdapter],
    spelled: Mapping[str, Respelled],
    before: Mapping[str, LayerAdapter],
    dtype: torch.dtype | None,
) -> dict[str, LayerAdapter]:
    """``formed`` in ``dtype``, or in that of the source ``before`` of each of ``spelled``.

    Raises BadValueError for numbers that do not fit it.
    """
    sources = {name: layer.source for name, layer in spelled.items()}
    return {
        name: _stored(sources[name], layer, before[sources[name]], dtype) for name, layer in formed.items()
    }


def as_written(adapter_set: AdapterSet) -> AdapterSet:
    """``adapter_set`` with every layer in the form that its dialect has, where it has one (``formed``).

    Itself if that is how it is. Raises BadValueError as ``stored`` does.
    """
    spelled = {name: Respelled(layer, name) for name, layer in adapter_set.items()}
    exact = formed(spelled, None, insisting=False)
    told = peft_metadata(exact)
    if all(exact[name] is layer for name, layer in adapter_set.items()):
        if told.keys() <= adapter_set.metadata.keys():
            return adapter_set
        return replace(adapter_set, metadata={**adapter_set.metadata, **told})
    layers = stored(exact, spelled, adapter_set, None)
    return replace(adapter_set, layers=layers, metadata={**_in_factors(adapter_set.metadata), **told})


def _stored(name: str, layer: LayerAdapter, before: LayerAdapter, dtype: torch.dtype | None) -> LayerAdapter:
    """``layer`` in ``dtype``, or in that of its first tensor ``before``."""
    if layer is before and dtype is None:
        return layer
    kept = dtype or next(
        value.dtype
        for item in before.components()
        for _, value in item.tensors()
        if value.dtype.is_floating_point
    )
    try:
        return layer.stored_as(kept)
    except BadValueError as error:
        layer.require_finite()  # then it was not the rounding
        kind = str(kept).removeprefix("torch.")
        raise BadValueError(
            f"layer {quoted(name)} has numbers too large for {kind}: save as bfloat16 or float32"
        ) from error


def _rounding_notes(
    exact: Mapping[str, LayerAdapter], layers: Mapping[str, LayerAdapter], dtype: torch.dtype | None
) -> list[str]:
    """What the rounding to fp8 takes."""
    if dtype not in STOCHASTIC:
        return []
    losses = {name: _loss(layer, layers[name]) for name, layer in exact.items()}
    worst = max(losses, key=lambda name: losses[name])
    kind = str(dtype).removeprefix("torch.")
    typical = sorted(losses.values())[len(losses) // 2]
    return [
        f"rounded to {kind}, where small numbers become 0: the change of a layer is off by {typical:.0%} "
        f"typically, by {losses[worst]:.0%} at most (layer {quoted(worst)})"
    ]


def _loss(exact: LayerAdapter, stored: LayerAdapter) -> float:
    """How far rounding moves the change of a layer, as a share of it: what it does to each tensor."""
    total = 0.0
    for before, after in zip(exact.weight_components, stored.weight_components, strict=True):
        for (_, own), (_, rounded) in zip(before.tensors(), after.tensors(), strict=True):
            size = float(own.float().norm())
            total += (float((own.float() - rounded.float()).norm()) / size) ** 2 if size else 0.0
    return math.sqrt(total)


# ---- metadata -------------------------------------------------------------------------------------------


def _metadata(
    adapter_set: AdapterSet,
    dtype: torch.dtype | None,
    dialect: Dialect | None,
    strength_model: float,
    strength_clip: float,
    multipliers: tuple[Multipliers, ...],
    title: str | None,
) -> dict[str, str]:
    """What was there, that every alpha is as stored, and how this file came about."""
    kept = _in_factors(adapter_set.metadata)
    recipe: dict[str, object] = {
        "tool": "lycoris_algos convert",
        "source": source_record(adapter_set, multipliers),
        "strength_model": strength_model,
        "strength_clip": strength_clip,
        "dtype": "as stored" if dtype is None else str(dtype).removeprefix("torch."),
        "dialect": "as stored" if dialect is None else dialect.name,
    }
    kept[RECIPE] = json.dumps(recipe, ensure_ascii=False)
    return {**kept, **modelspec(kept, title or adapter_set.name)}


def _in_factors(metadata: Mapping[str, str]) -> dict[str, str]:
    """``still_true``, and that nothing about the factors is left for metadata to say."""
    return {MARK: "converted: every alpha is what the file says", **still_true(metadata)}


def still_true(metadata: Mapping[str, str]) -> dict[str, str]:
    """``metadata`` without hashes of a file's tensors, and without how its alphas were kept."""
    return {key: value for key, value in metadata.items() if key not in (*PEFT_METADATA, *_HASHES)}


def modelspec(metadata: Mapping[str, str], title: str) -> dict[str, str]:
    """The fields of ModelSpec (Stability AI's convention) that every file written here has."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "modelspec.sai_model_spec": metadata.get("modelspec.sai_model_spec", "1.0.0"),
        "modelspec.implementation": "https://github.com/lycoris-nodes/lycoris-nodes",
        "modelspec.title": title,
        "modelspec.date": now,
    }
