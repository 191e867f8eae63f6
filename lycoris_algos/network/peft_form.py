"""Diffusers' and PEFT's form of layers: no alpha beside the factors, and ranks that differ in the metadata.

Both take alpha to be the rank, and one rank for all layers, unless the metadata of the file say otherwise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..adapters import LayerAdapter
from ..errors import NoSpellingError
from ..formats import dialect_of

#: The dialects that have no alpha.
WITHOUT_ALPHA = frozenset({"diffusers", "peft"})
#: Metadata of what this form makes untrue: how alpha was kept.
PEFT_METADATA = ("lora_adapter_metadata", "adapter_config")


def peft_form(layer: LayerAdapter, title: str) -> LayerAdapter:
    """``layer`` as PEFT knows it: alpha in the factors, magnitudes of outputs as a vector, a LoRA's bias.

    Itself if that is what it is. Raises NoSpellingError, naming the dialect by its ``title``, for what has no
    such form.
    """
    magnitude = layer.magnitude
    alone = not layer.extras and layer.reshape is None
    algorithm = layer.algorithm.to_peft() if layer.algorithm is not None and alone else None
    # PEFT's DoRA takes no bias.
    takes_biases = algorithm is not None and (magnitude is None or not layer.bias_extras)
    if (
        algorithm is None
        or not takes_biases
        or any(extra.to_peft(algorithm) is None for extra in layer.bias_extras)
    ):
        raise NoSpellingError(
            f"{title} has no form for {' + '.join(layer.titles)} as it is stored here: choose kohya or "
            "ComfyUI, or let CombineLyCORIS make a LoRA of it"
        )
    if magnitude is not None:
        magnitude = magnitude.to_peft()
        if magnitude is None:
            raise NoSpellingError(f"{title} knows DoRA on outputs only, and this is on inputs")
    if algorithm is layer.algorithm and magnitude is layer.magnitude:
        return layer
    return replace(layer, algorithm=algorithm, magnitude=magnitude)


def as_peft_stores(layer: LayerAdapter) -> LayerAdapter:
    """``layer`` for a file in PEFT's names: a bias is that of ``lora_B`` where there is such a form of it."""
    if layer.algorithm is None or not layer.bias_extras:
        return layer
    biases = tuple(extra.to_peft(layer.algorithm) or extra for extra in layer.bias_extras)
    return replace(layer, bias_extras=biases)


def peft_metadata(layers: Mapping[str, LayerAdapter]) -> dict[str, str]:
    """What a file of ``layers`` says in its metadata, so that every rank is known; nothing if they are equal.

    It is one configuration of PEFT for each component of a pipeline, as diffusers packs and reads them, or
    one alone for files of PEFT. Every scale is 1, since alpha is in the factors.
    """
    components: dict[str, dict[str, LayerAdapter]] = {}
    for name, layer in layers.items():
        dialect = dialect_of(name)
        if dialect.name not in WITHOUT_ALPHA or layer.algorithm is None or layer.algorithm.algo != "lora":
            return {}  # there is no configuration of several algorithms
        component, _, inside = name.partition(".")
        if dialect.name == "peft":
            component, inside = "", name.removeprefix("base_model.model.")
        components.setdefault(component, {})[inside] = layer
    ranks = {component: _ranks(own) for component, own in components.items()}
    if all(len(set(own.values())) < 2 for own in ranks.values()):
        return {}
    table: dict[str, object] = {}
    for component, own in ranks.items():
        prefix = f"{component}." if component else ""
        layers_of = components[component].values()
        told = {
            **_configuration(own),
            "use_dora": any(layer.magnitude is not None for layer in layers_of),
            "lora_bias": any(layer.bias_extras for layer in layers_of),
        }
        table.update({prefix + key: value for key, value in told.items()})
    return {PEFT_METADATA[0]: json.dumps(table)}


def _ranks(layers: Mapping[str, LayerAdapter]) -> dict[str, int]:
    known = {name: layer.algorithm.rank for name, layer in layers.items() if layer.algorithm is not None}
    return {name: rank for name, rank in known.items() if rank is not None}


def _configuration(ranks: Mapping[str, int]) -> dict[str, object]:
    """What PEFT's LoraConfig takes."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    other = tuple(name for name, rank in ranks.items() if rank != common)
    # PEFT takes the first name that a layer's path ends with. So a layer whose path ends with another's is
    # named as well, and before that.
    ends = tuple(f".{name}" for name in other)
    named = [name for name, rank in ranks.items() if rank != common or name.endswith(ends)]
    pattern = {name: ranks[name] for name in sorted(named, key=len, reverse=True)}
    return {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
    }
