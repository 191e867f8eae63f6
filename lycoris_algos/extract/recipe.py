"""The metadata of an extracted file: out of which models it came and how, and what other programs ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..adapters import LayerAdapter
from ..network.convert import modelspec
from ..network.corrections import MARK
from ..network.peft_form import peft_metadata
from ..network.recipe import RECIPE
from ..ops.ranks import RankKind
from .options import FULL
from .plan import ExtractPlan


def extracted_metadata(plan: ExtractPlan, name: str, layers: Mapping[str, LayerAdapter]) -> dict[str, str]:
    """Metadata for the result of ``plan``, which holds ``layers`` and is called ``name``."""
    return {
        MARK: "extracted: every alpha is what the file says",
        RECIPE: json.dumps(_recipe(plan), ensure_ascii=False),
        **modelspec({}, name),
        **peft_metadata(layers),
    }


def _recipe(plan: ExtractPlan) -> dict[str, object]:
    options = plan.options
    recipe: dict[str, object] = {
        "tool": "lycoris_algos extract",
        "algorithm": options.algorithm,
        "base": plan.base.record(),
        "tuned": plan.tuned.record(),
        "dtype": str(options.dtype).removeprefix("torch."),
    }
    if options.algorithm != FULL:
        recipe |= {"rank": options.linear.kind.value, "rank_value": options.linear.value}
        if options.linear.kind is not RankKind.BUDGET:
            recipe["convolution_rank_value"] = options.convolution.value
    if options.sparsity is not None:
        recipe["sparsity"] = options.sparsity
    return recipe
