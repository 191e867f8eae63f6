"""Fewer ranks than a file has, chosen when it is loaded.

A DyLoRA is trained so that its first n ranks are an adapter of their own; of a LoRA, and of a LoKr's low-rank
factor, the best n ranks are taken by singular value. Other algorithms have no such cut: they need their
deltas to be formed and factorised again, which is CombineLyCORIS' work.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..adapters import Core
from ..adapters.lokr import LoKr
from ..adapters.lora import LoRA
from ..errors import LycorisError, NoRankError
from ..io import network_args
from .adapter_set import AdapterSet


def with_rank(adapter_set: AdapterSet, rank: int) -> AdapterSet:
    """``adapter_set`` with at most ``rank`` ranks in every core; 0 means all of them.

    Raises NoRankError, naming the layer and CombineLyCORIS, for a core that cannot be cut.
    """
    if rank <= 0:
        return adapter_set
    nested = _nested_scaling(adapter_set)
    layers = {}
    for name, layer in adapter_set.items():
        try:
            core = None if layer.core is None else _cut(layer.core, rank, nested)
        except LycorisError as error:
            raise error.with_context(f"file '{adapter_set.name}', layer '{name}'") from error
        layers[name] = replace(layer, core=core)
    cut = sum(layers[name].core is not layer.core for name, layer in adapter_set.items())
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


def _cut(core: Core, rank: int, nested: str | None) -> Core:
    if core.rank is not None and core.rank <= rank:
        return core
    if isinstance(core, LoRA) and nested is not None and core.mid is None:
        return _first(core, rank, nested)
    if isinstance(core, LoRA | LoKr) and core.rank is not None:
        return core.best(rank)
    raise NoRankError(
        f"{core.title} has no ranks to choose from when it is loaded: use CombineLyCORIS to resize it"
    )


def _first(core: LoRA, rank: int, nested: str) -> LoRA:
    """The first ranks, scaled as training scaled them: α/n of LyCORIS, α/r·√(r/n) of kohya."""
    alpha = core.alpha
    if alpha is not None and nested == "kohya":
        alpha *= math.sqrt(rank / core.rank)
    return replace(core, up=core.up[:, :rank], down=core.down[:rank], alpha=alpha)
