"""The metadata of a combined file: what it was made from and how, and what other programs want to know.

What describes a training is not carried over: it was not this file that was trained, and some of it changes
what loaders compute (network/corrections.py). What all sources agree on about the base model is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...io import trigger_words
from ...network.convert import modelspec
from ...network.corrections import MARK
from ...network.recipe import RECIPE, source_record
from ...ops.ranks import RankKind
from .methods import PARAMETERS

if TYPE_CHECKING:
    from .plan import CombinePlan

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


def combined_metadata(plan: CombinePlan, name: str) -> dict[str, str]:
    """Metadata for the result of ``plan``, called ``name``."""
    sources = [source.adapters for source in plan.sources]
    metadata = {
        MARK: "combined: every alpha is what the file says",
        RECIPE: json.dumps(_recipe(plan), ensure_ascii=False),
        **modelspec({}, name),
        "modelspec.merged_from": ", ".join(source.name for source in sources),
    }
    words = dict.fromkeys(word for source in sources for word in trigger_words(source.metadata))
    if words:
        metadata["modelspec.trigger_phrase"] = ", ".join(words)
    for key in _SHARED:
        said = {source.metadata[key] for source in sources if source.metadata.get(key)}
        if len(said) == 1:
            metadata[key] = said.pop()
    return metadata


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
                **source_record(source.adapters),
                "strength_model": source.strength_model,
                "strength_clip": source.strength_clip,
            }
            for source in plan.sources
        ],
    }
    if options.rank.kind is not RankKind.EXACT:
        recipe["rank_value"] = options.rank.value
    if plan.base is not None:
        recipe["base"] = plan.base.record()
    return recipe
