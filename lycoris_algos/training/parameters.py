"""An adapter as a parametrization of a parameter: whoever reads the parameter gets the changed one.

For parameters that no layer's forward uses alone, such as the fused projections of an attention:

    >>> adapter = training.parametrize(attention, "in_proj_weight", "lora", lora_dim=8)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ..adapters import LayerAdapter, begin, change_in_step, resumed
from ..errors import BadValueError
from ..ops.dtypes import compute_dtype
from .step import Step


class ParameterAdapter(Step):
    """``adapter`` on a ``weight``, which its forward takes and answers changed: W + m·ΔW(W)."""

    def __init__(
        self,
        weight: Tensor,
        adapter: LayerAdapter,
        *,
        multiplier: float = 1.0,
        rank_dropout: float = 0.0,
        rank_dropout_scale: bool = False,
        scalar: bool = False,
        mask_group_id: int = 0,
    ) -> None:
        super().__init__()
        adapter.fits(weight.shape)
        self.multiplier = multiplier
        self.rank_dropout = rank_dropout
        self.rank_dropout_scale = rank_dropout_scale
        self.mask_group_id = mask_group_id
        self.hold(resumed(adapter, weight.detach()) if adapter.needs_weight else adapter, scalar)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, in its own dtype."""
        adapter, kept = self.in_step(weight.shape[0])
        dtype = compute_dtype(self.dtype)
        change = change_in_step(adapter, weight.shape, dtype, kept).cast(weight.device, dtype)
        matrix = weight.detach().to(dtype).reshape(weight.shape[0], -1) if change.needs_weight else None
        delta = change.delta(matrix).reshape(weight.shape)
        return torch.add(weight, delta.to(weight.dtype), alpha=self.multiplier)


def parametrize(
    module: nn.Module, attr: str, algorithm: str, *, use_scalar: bool = False, **options: Any
) -> ParameterAdapter:
    """Puts the start of training by ``algorithm`` on a parameter of ``module``, of 2 to 5 dimensions.

    ``options`` are those of ``ParameterAdapter`` and of the algorithm; ``torch.nn.utils.parametrize`` takes
    it off again. Raises BadValueError for options, and for a parameter, that do not fit.
    """
    weight = getattr(module, attr)
    if not isinstance(weight, Tensor) or not 2 <= weight.dim() <= 5:
        raise BadValueError("only a parameter of 2 to 5 dimensions can be parametrized")
    general = {name: options.pop(name) for name in _GENERAL & options.keys()}
    if use_scalar:
        options["use_scalar"] = True
    made = ParameterAdapter(
        weight, begin(algorithm, weight.detach(), **options), scalar=use_scalar, **general
    )
    register_parametrization(module, attr, made)
    return made


_GENERAL = {"multiplier", "rank_dropout", "rank_dropout_scale", "mask_group_id"}
