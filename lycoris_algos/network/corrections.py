"""What only a file's metadata says about its maths.

Most tensors mean the same whoever wrote them. A few trainers scale by something that they do not put into the
file's ``alpha``; their metadata says so, and without it no loader can be right. Each correction here turns
such a layer into the plain form of the same algorithm with the alpha that its training used, and says what it
did, for the report.

A corrected set is marked, so that it is not corrected again after it was saved and loaded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from ..adapters import Core, LayerAdapter
from ..adapters.glora import GLoRA
from ..adapters.loha import LoHa
from ..adapters.lokr import LoKr
from ..adapters.lora import LoRA
from ..adapters.oft import DiagOFT, SplitOFT
from ..adapters.sparse import SparseTarget, SparseWeight
from ..io import network_args
from . import peft_config

#: Metadata key of a set whose alphas are what training used.
MARK = "lycoris_algos.corrected"

_DYLORA_BLOCK = 4  # LyCORIS' default block_size
# kohya stores 0 for "no rotation at all" where LyCORIS stores it for "no constraint". A constraint that is
# this small leaves no rotation either, in every loader.
_NO_ROTATION = 1e-12


@dataclass(frozen=True)
class _Facts:
    """What the metadata says about how the file was trained."""

    algo: str
    module: str
    #: The rank that training was asked for, where it says so.
    rank: float | None
    args: Mapping[str, str]
    peft: Mapping[str, object]
    #: Whether the file stores alpha as the user gave it although rs_lora was on (LyCORIS before 3.1).
    raw_alphas: bool

    def flag(self, name: str) -> bool:
        return self.args.get(name, "").strip().lower() in ("true", "1", "yes")


_Correction = Callable[[str, Core, _Facts], tuple[Core, str] | None]


def corrected(
    layers: Mapping[str, LayerAdapter], metadata: Mapping[str, str]
) -> tuple[dict[str, LayerAdapter], dict[str, str], tuple[str, ...]]:
    """(layers, metadata, notes) with every layer as training used it. Says what it did in ``notes``."""
    counts: Counter[str] = Counter()
    changed: dict[str, LayerAdapter] = {}
    facts = None if MARK in metadata else _facts(metadata, layers)
    for name, layer in layers.items():
        for core, note in _corrections(name, layer.core, facts) if facts is not None else ():
            layer = replace(layer, core=core)
            counts[note] += 1
        if facts is not None:
            layer, note = peft_config.adjusted(name, layer, facts.peft)
            counts.update([note] if note else [])
        changed[name] = layer
    described = {**metadata, MARK: "; ".join(counts)} if counts else dict(metadata)
    for name, layer in changed.items():  # what the tensors themselves say: true of a corrected file as well
        if _has_target_residual(layer):
            changed[name] = _with_target_residual(layer)
            counts[_RESIDUAL_NOTE] += 1
        if layer.core is not None and layer.core.facts().get("alpha") == 0 and layer.core.rank is not None:
            counts["alpha is 0: the file changes nothing there"] += 1
    notes = tuple(f"{note} ({count} of {len(layers)} layers)" for note, count in counts.items())
    return changed, described, notes


_RESIDUAL_NOTE = (
    "extract_locon's sparse residual holds the base weight as well (a bug of that tool): taken out"
)


def _has_target_residual(layer: LayerAdapter) -> bool:
    tucker = isinstance(layer.core, LoRA) and layer.core.mid is not None
    return tucker and any(type(part) is SparseWeight for part in layer.parts)


def _with_target_residual(layer: LayerAdapter) -> LayerAdapter:
    parts = (
        SparseTarget(part.positions, part.values, part.size) if type(part) is SparseWeight else part
        for part in layer.parts
    )
    return replace(layer, parts=tuple(parts))


def _corrections(name: str, core: Core | None, facts: _Facts) -> Iterator[tuple[Core, str]]:
    for correction in _ALL:
        found = None if core is None else correction(name, core, facts)
        if found is not None:
            core = found[0]
            yield found


def _dylora(name: str, core: Core, facts: _Facts) -> tuple[Core, str] | None:
    """LyCORIS divides alpha by the number of blocks where the file's rank counts ranks."""
    if facts.algo != "dylora" or not isinstance(core, LoRA) or core.alpha is None:
        return None
    try:
        block = int(float(facts.args.get("block_size", _DYLORA_BLOCK)))
    except ValueError:
        return None
    if block < 2:
        return None
    note = f"DyLoRA of LyCORIS with block_size {block}: alpha is {block} times what the file says"
    return replace(core, alpha=core.alpha * block), note


def _rank_stabilised(name: str, core: Core, facts: _Facts) -> tuple[Core, str] | None:
    """rs_lora divides alpha by √r; LyCORIS writes alpha·√r, except where this function says otherwise."""
    if not facts.flag("rs_lora") or not isinstance(core, LoRA | LoHa | LoKr | GLoRA) or core.alpha is None:
        return None
    if isinstance(core, LoKr) and core.rank is None:
        if core.fixed_scale is not None:
            return None
        # Both factors whole: training forces alpha = r and scales by √r; r·√r is what the file says.
        note = "LoKr of whole matrices with rs_lora: scaled by √rank, which the file's alpha tells"
        return replace(core, fixed_scale=abs(core.alpha) ** (1 / 3)), note
    if core.rank is None or not (isinstance(core, GLoRA) or facts.raw_alphas):
        return None
    note = "rs_lora whose alpha was stored without √rank: multiplied by it"
    return replace(core, alpha=core.alpha * math.sqrt(core.rank)), note


def _split_qkv(name: str, core: Core, facts: _Facts) -> tuple[Core, str] | None:
    """kohya trains q, k, v (and the MLP beside them) apart and stores them as one, with one part's alpha."""
    if not facts.flag("split_qkv") or not isinstance(core, LoRA) or core.alpha is None:
        return None
    parts = 3 if name.endswith(("_qkv", ".qkv")) else 4 if name.endswith("linear1") else 1
    resized = facts.rank is not None and core.rank != parts * facts.rank
    if parts == 1 or resized:
        return None
    note = f"kohya's split_qkv: alpha belongs to one of {parts} parts, so it counts {parts} times"
    return replace(core, alpha=core.alpha * parts), note


def _kohya_oft(name: str, core: Core, facts: _Facts) -> tuple[Core, str] | None:
    """alpha 0 is no constraint to LyCORIS; kohya clamps to it, so nothing turns."""
    if not facts.module.startswith("networks.oft") or not isinstance(core, DiagOFT | SplitOFT):
        return None
    if core.alpha != 0.0:
        return None
    return replace(core, alpha=_NO_ROTATION), "kohya's OFT with alpha 0: its constraint allows no rotation"


_ALL: tuple[_Correction, ...] = (_dylora, _rank_stabilised, _split_qkv, _kohya_oft)


def _facts(metadata: Mapping[str, str], layers: Mapping[str, LayerAdapter]) -> _Facts:
    args = network_args(metadata)
    for key, value in _json(metadata.get("lycoris_config")).items():
        args.setdefault(key, str(value))
    alphas = (metadata.get("ss_network_alpha"), args.get("conv_alpha"), args.get("linear_alpha"))
    return _Facts(
        algo=args.get("algo", "").lower(),
        module=metadata.get("ss_network_module", ""),
        rank=_float(metadata.get("ss_network_dim")),
        args=args,
        peft=_json(metadata.get("lora_adapter_metadata")) or _json(metadata.get("adapter_config")),
        raw_alphas=_raw_alphas(layers, [value for value in map(_float, alphas) if value is not None]),
    )


def _raw_alphas(layers: Mapping[str, LayerAdapter], asked: Collection[float]) -> bool:
    """Whether layers store an alpha of ``asked`` itself, and none stores one times √rank.

    Decided for the file as a whole: alpha·√rank of one layer may by chance be what was asked of another.
    """
    raw = folded = 0
    for layer in layers.values():
        core = layer.core
        alpha = getattr(core, "alpha", None)
        if core is None or core.rank is None or core.rank < 2 or alpha is None:
            continue
        is_raw = any(math.isclose(alpha, a, rel_tol=1e-2) for a in asked)
        is_folded = any(math.isclose(alpha, a * math.sqrt(core.rank), rel_tol=1e-2) for a in asked)
        raw += is_raw and not is_folded
        folded += is_folded and not is_raw
    return raw > 0 and folded == 0


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _json(text: str | None) -> dict[str, object]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
