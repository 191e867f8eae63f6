"""Corrects adapters by what only their file's metadata says about the maths, such as a scale.

Most tensors mean the same whoever wrote them. A few trainers scale by something that they do not put into the
file's ``alpha``; their metadata says so, and without it no loader can be right. Each correction here turns
such a layer into the plain form of the same algorithm with the alpha that its training used, and says what it
did, for the report.

A corrected set is marked, so that it is not corrected again after it was saved and loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from ..adapters import LayerAdapter, TrainingFacts
from ..io import network_args
from .peft_config import PeftConfig, as_peft_trained, json_table

#: Metadata key of a set whose alphas are what training used.
MARK = "lycoris_algos.corrected"


def corrected(
    layers: Mapping[str, LayerAdapter], metadata: Mapping[str, str]
) -> tuple[dict[str, LayerAdapter], dict[str, str], tuple[str, ...]]:
    """(layers, metadata, notes) with every layer as training used it. Says what it did in ``notes``."""
    counts: Counter[str] = Counter()
    changed = dict(layers)
    if MARK not in metadata:
        facts, peft = _facts(metadata, layers), PeftConfig.of(metadata)
        for name, layer in layers.items():
            layer, notes = _as_trained(name, layer, facts)
            layer, note = as_peft_trained(name, layer, peft)
            changed[name] = layer
            counts.update([*notes, *([note] if note else [])])
    described = {**metadata, MARK: "; ".join(counts)} if counts else dict(metadata)
    for name, layer in changed.items():  # what the tensors themselves say: true of a corrected file as well
        changed[name], notes = _read_together(layer)
        counts.update(notes)
    notes = [f"{note} ({count} of {len(layers)} layers)" for note, count in counts.items()]
    return changed, described, tuple(notes)


def _as_trained(name: str, layer: LayerAdapter, facts: TrainingFacts) -> tuple[LayerAdapter, list[str]]:
    steps = [] if layer.algorithm is None else list(layer.algorithm.as_trained(name, facts))
    if steps:
        layer = replace(layer, algorithm=steps[-1][0])
    return layer, [note for _, note in steps]


def _read_together(layer: LayerAdapter) -> tuple[LayerAdapter, list[str]]:
    """``layer`` with what its extras mean beside its algorithm, and what was done or is unusual."""
    algorithm = layer.algorithm
    read, biases = ([extra.beside(algorithm) for extra in own] for own in (layer.extras, layer.bias_extras))
    notes = [note for _, note in (*read, *biases) if note]
    if read or biases:
        layer = replace(
            layer,
            extras=tuple(extra for extra, _ in read),
            bias_extras=tuple(extra for extra, _ in biases),
        )
    if algorithm is not None and algorithm.rank is not None and algorithm.facts().get("alpha") == 0:
        notes.append("alpha is 0: the file changes nothing there")
    return layer, notes


def _facts(metadata: Mapping[str, str], layers: Mapping[str, LayerAdapter]) -> TrainingFacts:
    args = network_args(metadata)
    for key, value in json_table(metadata.get("lycoris_config")).items():
        args.setdefault(key, str(value))
    alphas = (metadata.get("ss_network_alpha"), args.get("conv_alpha"), args.get("linear_alpha"))
    return TrainingFacts(
        algo=args.get("algo", "").lower(),
        module=metadata.get("ss_network_module", ""),
        rank=_float(metadata.get("ss_network_dim")),
        args=args,
        raw_alphas=_raw_alphas(layers, [value for value in map(_float, alphas) if value is not None]),
    )


def _raw_alphas(layers: Mapping[str, LayerAdapter], asked: Collection[float]) -> bool:
    """Whether layers store an alpha of ``asked`` itself, and none stores one times √rank.

    Decided for the file as a whole: alpha·√rank of one layer may by chance be what was asked of another.
    """
    raw = folded = 0
    for layer in layers.values():
        algorithm = layer.algorithm
        alpha = getattr(algorithm, "alpha", None)
        if algorithm is None or algorithm.rank is None or algorithm.rank < 2 or alpha is None:
            continue
        is_raw = any(math.isclose(alpha, a, rel_tol=1e-2) for a in asked)
        is_folded = any(math.isclose(alpha, a * math.sqrt(algorithm.rank), rel_tol=1e-2) for a in asked)
        raw += is_raw and not is_folded
        folded += is_folded and not is_raw
    return raw > 0 and folded == 0


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
