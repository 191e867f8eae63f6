"""What PEFT's LoRA, LoHa and LoKr share: alpha stands in the configuration, or is folded into a factor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..errors import BadValueError
from ._base import Algorithm, scale
from ._trained import PeftReading, PeftSettings

_IGNORED = "alpha as the file's tensors say; PEFT's configuration says another, which is ignored"
_A = TypeVar("_A", bound=Algorithm)


def scaled_by_peft(algorithm: Algorithm, settings: PeftSettings) -> PeftReading:
    """``algorithm`` with the alpha of PEFT's configuration, where its file has none."""
    fields: Any = algorithm
    alpha = settings.of_layer("alpha_pattern", "lora_alpha", "alpha")
    if fields.alpha is not None:
        ignored = alpha is not None and not math.isclose(alpha, fields.alpha, rel_tol=1e-2)
        return PeftReading(algorithm, _IGNORED if ignored else "")
    # PEFT divides by the rank it was asked for, also where a LoKr has no low-rank factor to tell it.
    rank = algorithm.rank or settings.of_layer("rank_pattern", "r")
    if alpha is None or not rank:
        return PeftReading(algorithm)
    if rank < 0:
        raise BadValueError(f"PEFT's configuration says that its rank is {rank:g}: it is damaged")
    alpha *= math.sqrt(rank) if settings["use_rslora"] is True else 1.0
    if algorithm.rank is None:
        scaled = replace(fields, fixed_scale=alpha / rank)
    else:
        scaled = replace(fields, alpha=alpha)
    return PeftReading(scaled, "alpha from PEFT's configuration in the metadata")


def folded(algorithm: _A) -> _A:
    """``algorithm`` with its scale in a factor, so that nothing but its factors tells what it does."""
    fields: Any = algorithm
    if fields.alpha is None and fields.fixed_scale is None:
        return algorithm
    own = scale(fields.alpha, algorithm.rank, fields.fixed_scale)
    if own != 1.0:
        fields = algorithm.cast(torch.float32).multiplied(own)
    alone: _A = replace(fields, alpha=None, fixed_scale=None)
    return alone
