"""The metadata of a combined file: what it was made from and how, and what other programs want to know.

Of one source everything stays that is still true of the result: whose it is, what it was trained on and how.
Of several, all authors, licences, tags and comments are named, and what all that say something about the
base model agree on stays. What describes a training does not: it was not this file that was trained, and some
of it changes what loaders compute (network/corrections.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...adapters import LayerAdapter
from ...io import trigger_words
from ...network import AdapterSet
from ...network.convert import modelspec, still_true
from ...network.corrections import MARK
from ...network.peft_config import json_table
from ...network.peft_form import peft_metadata
from ...network.recipe import RECIPE, source_record
from ...ops.ranks import RankKind
from .methods import PARAMETERS

if TYPE_CHECKING:
    from .plan import CombinePlan

# Of every source.
_CREDITS = ("modelspec.author", "modelspec.license", "modelspec.tags", "ss_training_comment")
# About the base model; kept where every source that says something says the same.
_SHARED = (
    "ss_base_model_version",
    "ss_v2",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_clip_skip",
    "modelspec.architecture",
    "modelspec.prediction_type",
    "modelspec.resolution",
    "modelspec.encoder_layer",
)
# What a network is made of: its class, ranks, alphas and arguments.
_NETWORK = ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "lycoris_config")
# sd-scripts' word for ranks that differ.
_DYNAMIC = "Dynamic"


def combined_metadata(plan: CombinePlan, name: str, layers: Mapping[str, LayerAdapter]) -> dict[str, str]:
    """Metadata for the result of ``plan``, which holds ``layers`` and is called ``name``."""
    sources = [source.adapters for source in plan.sources]
    kept = _of_one(sources[0], layers) if len(sources) == 1 else _of_several([s.metadata for s in sources])
    metadata = {
        **kept,
        MARK: "combined: every alpha is what the file says",
        RECIPE: json.dumps(_recipe(plan), ensure_ascii=False),
        **modelspec(kept, name),
        **peft_metadata(layers),
    }
    if len(sources) > 1:
        metadata["modelspec.merged_from"] = ", ".join(source.name for source in sources)
    words = dict.fromkeys(word for source in sources for word in trigger_words(source.metadata))
    if words:
        metadata.setdefault("modelspec.trigger_phrase", ", ".join(words))
    return metadata


def _of_one(source: AdapterSet, layers: Mapping[str, LayerAdapter]) -> dict[str, str]:
    """What is still true of ``source`` with other ranks, or as another algorithm."""
    kept = still_true(source.metadata)
    if _algorithms(source.values()) != _algorithms(layers.values()):
        return {key: value for key, value in kept.items() if key not in _NETWORK}
    ranks, alphas = _said(layers.values(), "rank"), _said(layers.values(), "alpha")
    args = json_table(kept.get("ss_network_args"))
    told = {"ss_network_dim": ranks, "ss_network_alpha": alphas}
    kept.update({key: value for key, value in told.items() if key in kept})
    if _said(source.values(), "rank") != ranks:
        kept.pop("lycoris_config", None)
        changed = {"conv_dim": ranks, "conv_alpha": alphas}
        if changed.keys() & args.keys():
            args = {key: changed.get(key, value) for key, value in args.items()}
            kept["ss_network_args"] = json.dumps(args, ensure_ascii=False)
    return kept


def _of_several(sources: Sequence[Mapping[str, str]]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for key in (*_CREDITS, *_SHARED):
        said = list(dict.fromkeys(source[key] for source in sources if source.get(key)))
        if len(said) == 1 or (said and key in _CREDITS):
            kept[key] = ", ".join(said)
    return kept


def _algorithms(layers: Iterable[LayerAdapter]) -> set[str]:
    return {layer.algorithm.algo for layer in layers if layer.algorithm is not None}


def _said(layers: Iterable[LayerAdapter], fact: str) -> str:
    """The number that is true of all ``layers`` that have one, as sd-scripts writes it."""
    facts = [layer.algorithm.facts() for layer in layers if layer.algorithm is not None]
    numbers = {own.get(fact, own.get("rank")) for own in facts if "rank" in own}
    (only,) = numbers if len(numbers) == 1 else (None,)
    return _DYNAMIC if only is None else f"{only:g}"


def _recipe(plan: CombinePlan) -> dict[str, object]:
    options = plan.options
    recipe: dict[str, object] = {
        "tool": "lycoris_algos combine",
        "method": options.method,
        "output": options.output,
        "rank": options.rank.kind.value,
        "lambda": options.scaling,
        **{name: getattr(options, name) for name in PARAMETERS},
        "live_order": options.live_order,
        "sources": [
            {
                **source_record(source.adapters, source.multipliers),
                "strength_model": source.strength_model,
                "strength_clip": source.strength_clip,
            }
            for source in plan.sources
        ],
    }
    if options.rank.kind is not RankKind.EXACT:
        recipe["rank_value"] = options.rank.value
        more = {"largest_rank": options.rank.most, "convolution_rank": options.rank.convolution}
        recipe.update({name: value for name, value in more.items() if value})
    if plan.base is not None:
        recipe["base"] = plan.base.record()
    return recipe
