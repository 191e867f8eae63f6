"""Fewer ranks than a file has, chosen when it is loaded.

A DyLoRA is trained so that its first n ranks are an adapter of their own; of a LoRA, and of a LoKr's low-rank
factor, the best n ranks are taken by singular value. Other algorithms have no such cut: they need their
deltas to be formed and factorised again, which is CombineLyCORIS' work.
"""

from __future__ import annotations

from dataclasses import replace

from ..adapters import Algorithm
from ..errors import LycorisError, NoRankError
from ..io import network_args
from ..text import quoted
from .adapter_set import AdapterSet


def with_rank(adapter_set: AdapterSet, rank: int) -> AdapterSet:
    """``adapter_set`` with at most ``rank`` ranks in every layer; 0 means all of them.

    Raises NoRankError, naming the layer and CombineLyCORIS, for an algorithm that cannot be cut.
    """
    if rank <= 0:
        return adapter_set
    nested = _nested_scaling(adapter_set)
    layers = {}
    for name, layer in adapter_set.items():
        try:
            algorithm = None if layer.algorithm is None else _cut(layer.algorithm, rank, nested)
        except LycorisError as error:
            raise error.with_context(f"file {quoted(adapter_set.name)}, layer {quoted(name)}") from error
        layers[name] = replace(layer, algorithm=algorithm)
    cut = sum(layers[name].algorithm is not layer.algorithm for name, layer in adapter_set.items())
    if not cut:
        return adapter_set
    which = "the first ranks of a DyLoRA" if nested else "the best ones by singular value"
    note = f"{cut} of {len(layers)} layers cut to rank {rank}: {which}"
    return replace(adapter_set, layers=layers, notes=(*adapter_set.notes, note))


def _nested_scaling(adapter_set: AdapterSet) -> str | None:
    """Who trained this as a DyLoRA, where the first ranks are adapters of their own; None for others."""
    metadata = adapter_set.metadata
    if metadata.get("ss_network_module") == "networks.dylora":
        return "kohya"
    config = metadata.get("lycoris_config", "")
    dylora = network_args(metadata).get("algo", "").lower() == "dylora" or '"dylora"' in config
    return "lycoris" if dylora else None


def _cut(algorithm: Algorithm, rank: int, nested: str | None) -> Algorithm:
    if algorithm.rank is not None and algorithm.rank <= rank:
        return algorithm
    cut = algorithm.cut(rank, nested)
    if cut is None:
        raise NoRankError(
            f"{algorithm.title} has no ranks to choose from when it is loaded: "
            "use CombineLyCORIS to resize it"
        )
    return cut
