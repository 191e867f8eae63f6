"""Converts an adapter set to another dtype, dialect or strength; its deltas stay the same.

- A *multiplier* is stored in a factor of each algorithm that is linear in one; the others (DoRA, OFT …) need
  their change to be computed against the base weight, which is CombineLyCORIS' work, and are refused.
- A *dialect* has its own names for layers, which names alone do not always give: underscores do not say where
  the dots were, and diffusers calls the layers of most models otherwise. A caller who knows the model gives
  the names (``known``); without, only what the names tell is done. diffusers and PEFT also have no alpha, no
  Tucker kernels, and only some algorithms.
- Everything is computed in float32 and rounded once, to the new dtype.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

import torch

from ..adapters import LayerAdapter
from ..errors import BadValueError, NoSpellingError
from ..formats import DIALECTS, Dialect, dialect_of, encoder_number, is_text_layer, model_paths, text_paths
from ..text import quoted
from .adapter_set import AdapterSet
from .corrections import MARK
from .recipe import RECIPE, source_record
from .stack import StackEntry


class KnownNames(Protocol):
    """Who knows what the names of layers mean: any ``KnownModel`` does."""

    def is_text(self, layer: str) -> bool:
        """Whether ``layer`` is one of a text encoder."""

    def rename(self, layer: str, dialect: str) -> str | None:
        """``layer`` as ``dialect`` spells it, or None."""


_WITHOUT_ALPHA = frozenset({"diffusers", "peft"})
#: The dialects that files can be written in.
WRITABLE = ("kohya", "comfy", "diffusers", "peft")
# What only says how alpha was kept, and is wrong once alpha is in the factors.
_PEFT_METADATA = ("lora_adapter_metadata", "adapter_config")


def convert(
    adapter_set: AdapterSet,
    *,
    dtype: torch.dtype | None = None,
    dialect: str | None = None,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    known: KnownNames | None = None,
    title: str | None = None,
    embeddings: bool = True,
) -> AdapterSet:
    """``adapter_set`` with its multipliers folded in, stored in ``dtype`` as ``dialect`` spells it.

    None keeps a dtype or the dialect; ``known`` tells other names of the layers, and which of them take
    ``strength_clip``; bundled ``embeddings`` come along or not. Raises BadValueError for a multiplier that
    cannot be folded in (naming CombineLyCORIS) or a number that does not fit ``dtype``, and
    NoSpellingError, naming the layer, for what ``dialect`` has no word for.
    """
    target = None if dialect is None else _writable(dialect)
    layers: dict[str, LayerAdapter] = {}
    entry = StackEntry(adapter_set, strength_model, strength_clip)
    numbered = any(encoder_number(name) == 2 for name in adapter_set)
    for name, layer in adapter_set.items():
        multiplier = entry.multiplier((known.is_text if known is not None else is_text_layer)(name))
        if multiplier == 0.0:
            continue
        spelled, changed = name, layer
        if multiplier != 1.0:
            changed = _multiplied(name, changed, multiplier)
        if target is not None:
            spelled = _spelled(name, target, known, numbered)
            if target.name in _WITHOUT_ALPHA:
                changed = _without_alpha(name, changed, target)
        if spelled in layers:
            raise NoSpellingError(
                f"two layers would be called {quoted(spelled)}, one of them is {quoted(name)}"
            )
        layers[spelled] = _stored(name, changed, layer, dtype)
    if not layers:
        raise BadValueError("the strength of every layer is 0, so nothing would be stored")
    described = _metadata(adapter_set, dtype, target, strength_model, strength_clip, title)
    written = adapter_set.dialect if target is None else target.name
    bundled = adapter_set.embeddings if embeddings else {}
    return replace(adapter_set, layers=layers, metadata=described, dialect=written, embeddings=bundled)


def _writable(name: str) -> Dialect:
    if name not in WRITABLE:
        raise NoSpellingError(f"files are written as {', '.join(WRITABLE)}, not as {quoted(name)}")
    return next(dialect for dialect in DIALECTS if dialect.name == name)


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
    stored = layer.cast(kept)
    try:
        stored.require_finite()
    except BadValueError as error:
        layer.require_finite()  # then it was not the rounding
        kind = str(kept).removeprefix("torch.")
        raise BadValueError(
            f"layer {quoted(name)} has numbers too large for {kind}: save as bfloat16 or float32"
        ) from error
    return stored


# ---- spelling -------------------------------------------------------------------------------------------


def _spelled(name: str, dialect: Dialect, known: KnownNames | None, numbered: bool) -> str:
    if dialect_of(name) is dialect:
        return name
    spelled = known.rename(name, dialect.name) if known is not None else None
    spelled = spelled or _by_name_alone(name, dialect, numbered)
    if spelled is None:
        raise NoSpellingError(
            f"layer {quoted(name)}: its name alone does not tell how {dialect.title} spells it. "
            + ("The model has no such name for it" if known is not None else "Give the model, which tells")
        )
    return spelled


def _by_name_alone(name: str, dialect: Dialect, numbered: bool) -> str | None:
    """What needs no model: dots to underscores, and one dotted prefix for another before the same path."""
    own = dialect_of(name)
    if is_text_layer(name):
        path = _shortest(text_paths(name))
        number = encoder_number(name) or 1
        is_path = own.name in (*_WITHOUT_ALPHA, "lycoris")
        if dialect.name == "kohya" and is_path:
            return f"lora_te{number if numbered else ''}_{path.replace('.', '_')}"
        return None
    path = _shortest(model_paths(name))
    if dialect.name == "kohya":
        return f"lora_unet_{path.replace('.', '_')}"
    if dialect.name == "diffusers" and own.name == "peft":
        return f"{'unet' if path.startswith(_UNET_BLOCKS) else 'transformer'}.{path}"
    return f"base_model.model.{path}" if dialect.name == "peft" and own.name == "diffusers" else None


_UNET_BLOCKS = ("down_blocks.", "up_blocks.", "mid_block.", "conv_in", "conv_out", "time_embedding.")


def _shortest(paths: Iterable[str]) -> str:
    """The path with the most taken off."""
    return min(paths, key=len)


def _without_alpha(name: str, layer: LayerAdapter, dialect: Dialect) -> LayerAdapter:
    """``layer`` as PEFT knows it: alpha in the factors, magnitudes of outputs as a vector, nothing else."""
    magnitude = layer.magnitude
    alone = not layer.extras and not layer.bias_extras and layer.reshape is None
    algorithm = layer.algorithm.to_peft() if layer.algorithm is not None and alone else None
    if algorithm is None:
        raise NoSpellingError(
            f"layer {quoted(name)}: {dialect.title} has no form for {' + '.join(layer.titles)} as it is "
            "stored here: choose kohya or ComfyUI, or let CombineLyCORIS make a LoRA of it"
        )
    if magnitude is not None:
        magnitude = magnitude.to_peft()
        if magnitude is None:
            raise NoSpellingError(
                f"layer {quoted(name)}: {dialect.title} knows DoRA on outputs only, and this is on inputs"
            )
    return replace(layer, algorithm=algorithm, magnitude=magnitude)


# ---- metadata -------------------------------------------------------------------------------------------


def _metadata(
    adapter_set: AdapterSet,
    dtype: torch.dtype | None,
    dialect: Dialect | None,
    strength_model: float,
    strength_clip: float,
    title: str | None,
) -> dict[str, str]:
    """What was there, that every alpha is as stored, and how this file came about."""
    kept = {key: value for key, value in adapter_set.metadata.items() if key not in _PEFT_METADATA}
    kept.setdefault(MARK, "converted: every alpha is what the file says")
    recipe: dict[str, object] = {
        "tool": "lycoris_algos convert",
        "source": source_record(adapter_set),
        "strength_model": strength_model,
        "strength_clip": strength_clip,
        "dtype": "as stored" if dtype is None else str(dtype).removeprefix("torch."),
        "dialect": "as stored" if dialect is None else dialect.name,
    }
    kept[RECIPE] = json.dumps(recipe, ensure_ascii=False)
    return {**kept, **modelspec(kept, title or adapter_set.name)}


def modelspec(metadata: Mapping[str, str], title: str) -> dict[str, str]:
    """The fields of ModelSpec (Stability AI's convention) that every file written here has."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "modelspec.sai_model_spec": metadata.get("modelspec.sai_model_spec", "1.0.0"),
        "modelspec.implementation": "https://github.com/lycoris-nodes/lycoris-nodes",
        "modelspec.title": title,
        "modelspec.date": now,
    }
