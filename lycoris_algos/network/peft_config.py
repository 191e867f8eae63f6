"""What only PEFT's configuration says about a file: adapter_config.json beside it, or in its metadata.

PEFT stores factors alone. Alpha, √rank, which rotation an OFT's triangles stand for and how far it may turn
are in the configuration, for all layers or by patterns of names. Here they become what other files store.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from ..adapters import LayerAdapter
from ..adapters.full import FullBias
from ..adapters.loha import LoHa
from ..adapters.lokr import LoKr
from ..adapters.lora import LoRA
from ..adapters.oftv2 import PEFT_EXACT, PEFT_OLD_SERIES, PEFT_SERIES, OFTv2
from ..errors import BadValueError

_PREFIX = "base_model.model."
# PEFT takes these out of the base weight before it trains, so that what it stores begins at another weight.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_TERMS = 5  # of the series that OFT is trained with by default
# PEFT 0.18 changed that series, and advises to train again; a file means the one it was trained with.
_NEW_SERIES = (0, 18)
_EPS = 6e-5  # PEFT's default of how far a constrained OFT may turn


def adjusted(name: str, layer: LayerAdapter, config: Mapping[str, object]) -> tuple[LayerAdapter, str]:
    """(``layer`` as PEFT trained it, what was done about it or ""), by the ``config`` of its file.

    Raises BadValueError for what the configuration says and no tensor of the file can mean.
    """
    own = _Config(name, config)
    if isinstance(layer.core, LoKr) and own.is_of("LOKR"):
        _require_kronecker(name, layer.core)
    if isinstance(layer.core, LoRA | LoHa | LoKr) and layer.core.alpha is None:
        return _scaled(layer, layer.core, own)
    if isinstance(layer.core, OFTv2) and layer.core.peft is None and own.is_of("OFT"):
        return _rotated(layer, layer.core, own)
    return layer, ""


@dataclass(frozen=True)
class _Config:
    """The configuration as it applies to one layer."""

    name: str
    values: Mapping[str, object]

    def __getitem__(self, key: str) -> object:
        component = self.name.partition(".")[0]  # diffusers has one configuration for each
        return self.values.get(f"{component}.{key}", self.values.get(key))

    def number(self, *keys: str) -> float | None:
        """The first of ``keys`` that is a number."""
        return next((float(value) for key in keys if _is_number(value := self[key])), None)

    def of_layer(self, patterns: str, *keys: str) -> float | None:
        """PEFT's rule: the first of ``patterns`` that the end of the layer's path matches, else ``keys``."""
        found = self[patterns]
        if isinstance(found, dict):
            for pattern, value in found.items():
                if _is_number(value) and self._matches(pattern):
                    return float(value)
        return self.number(*keys)

    def _matches(self, pattern: str) -> bool:
        # PEFT's names begin inside the model that was wrapped; diffusers puts the component before them.
        paths = self.name.removeprefix(_PREFIX), self.name.partition(".")[2].removeprefix(_PREFIX)
        expression = _expression(pattern)
        return any(expression.match(path) for path in paths)

    def is_of(self, kind: str) -> bool:
        """Whether PEFT trained it, as ``kind``; others store the same tensors and mean another thing."""
        return self["peft_type"] == kind or self.name.startswith(_PREFIX)

    def is_older_than(self, major: int, minor: int) -> bool:
        """Whether a PEFT before that version wrote it. None before 0.18 says which it is."""
        if self["peft_type"] is None:
            return False  # there is no configuration that could say it
        found = re.match(r"(\d{1,9})\.(\d{1,9})", str(self["peft_version"]))
        return found is None or (int(found[1]), int(found[2])) < (major, minor)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _expression(pattern: str) -> re.Pattern[str]:
    """``pattern`` as PEFT uses it, a regular expression for the end of a path.

    A file must not be able to keep a reader busy, so there are at most two repetitions, and none of a group.
    """
    if len(re.findall(r"(?<!\\)[*+?{]", pattern)) > 2 or re.search(r"\)[*+?{]", pattern):
        raise BadValueError(
            f"PEFT's configuration chooses layers by '{pattern}', which is too involved to be tried safely"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise BadValueError(f"PEFT's configuration chooses layers by '{pattern}': {error}") from error


def _scaled(layer: LayerAdapter, core: LoRA | LoHa | LoKr, config: _Config) -> tuple[LayerAdapter, str]:
    start = config["init_lora_weights"]
    if isinstance(core, LoRA) and isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise BadValueError(
            f"PEFT began it with '{start}', which changes the base weight too, so it does not fit the "
            "unchanged model. PiSSA, OLoRA, CorDA and LoRA-GA become an ordinary LoRA when PEFT saves them "
            "with path_initial_model_for_weight_conversion"
        )
    alpha = config.of_layer("alpha_pattern", "lora_alpha", "alpha")
    # PEFT divides by the rank it was asked for, also where a LoKr has no low-rank factor to tell it.
    rank = core.rank or config.of_layer("rank_pattern", "r")
    if alpha is None or not rank:
        return layer, ""
    alpha *= math.sqrt(rank) if config["use_rslora"] is True else 1.0
    if core.rank is None:
        scaled: LoRA | LoHa | LoKr = replace(core, fixed_scale=alpha / rank)
    else:
        scaled = replace(core, alpha=alpha)
    # A bias of lora_B is scaled with its matrix; only lora_bias makes one.
    biases = tuple(
        part.multiplied(alpha / rank) or part if isinstance(part, FullBias) else part
        for part in layer.bias_parts
    )
    return replace(layer, core=scaled, bias_parts=biases), "alpha from PEFT's configuration in the metadata"


def _require_kronecker(name: str, core: LoKr) -> None:
    if core.w2 is not None and core.w2.dim() == 3:
        raise BadValueError(
            f"layer '{name}': PEFT multiplies the whole factors of a LoKr of a one-dimensional convolution "
            "across outputs and kernel, which is no Kronecker product. Train it with a smaller rank or with "
            "use_effective_conv2d"
        )


def _rotated(layer: LayerAdapter, core: OFTv2, config: _Config) -> tuple[LayerAdapter, str]:
    exact, terms = config["use_cayley_neumann"] is False, config.number("num_cayley_neumann_terms")
    if not exact and terms not in (None, _TERMS):
        raise BadValueError(
            f"PEFT trained its OFT with {terms:g} terms of the Cayley transform's series; only {_TERMS}, "
            "which is the default, and the exact transform are known"
        )
    triangles, eps = core.triangles, config.number("eps")
    if config["coft"] is True:
        triangles = _constrained(triangles, _EPS if eps is None else eps)
    if exact:
        peft, how = PEFT_EXACT, ", by the exact transform"
    elif config.is_older_than(*_NEW_SERIES):
        peft, how = PEFT_OLD_SERIES, ", by the series of its versions before 0.18"
    else:
        peft, how = PEFT_SERIES, ""
    return replace(layer, core=replace(core, triangles=triangles, peft=peft)), f"OFT as PEFT turns it{how}"


def _constrained(triangles: Tensor, eps: float) -> Tensor:
    """``triangles`` as training's forward shrinks them: no skew matrix has a norm above eps/√n."""
    values = triangles.to(torch.float32)
    norms = math.sqrt(2.0) * torch.linalg.vector_norm(values, dim=1, keepdim=True)
    limit = eps / math.sqrt(len(values))
    return (values * torch.clamp(limit / norms, max=1.0)).to(triangles.dtype)
