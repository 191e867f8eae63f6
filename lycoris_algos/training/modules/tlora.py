"""LyCORIS' class for T-LoRA, and the mask of its ranks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..timesteps import clear_timestep_mask, compute_timestep_mask, get_timestep_mask, set_timestep_mask
from .base import LycorisBaseModule

__all__ = [
    "TLoraModule",
    "clear_timestep_mask",
    "compute_timestep_mask",
    "get_timestep_mask",
    "set_timestep_mask",
]


class TLoraModule(LycorisBaseModule):
    """T-LoRA: see ``adapters``."""

    name: ClassVar[str] = "tlora"
    algorithm: ClassVar[str] = "tlora"
    weight_list: ClassVar[tuple[str, ...]] = (
        "q_layer.weight",
        "p_layer.weight",
        "lambda_layer",
        "alpha",
        "base_q",
        "base_p",
        "base_lambda",
    )
    weight_list_det: ClassVar[tuple[str, ...]] = ("lambda_layer",)
    order: ClassVar[tuple[str, ...]] = (
        *LycorisBaseModule.order[:6],
        "rank_dropout_scale",
        "bypass_mode",
        "sig_type",
        "use_data_init",
        "mask_group_id",
    )

    def orthogonality_regularization(self) -> tuple[Tensor, Tensor]:
        """(‖PᵀP − I‖², ‖QQᵀ − I‖²): how far P and Q are from having orthogonal ranks of length 1."""
        p, q = (self.get_parameter(f"{name}_layer.weight").flatten(1) for name in "pq")
        same = torch.eye(q.shape[0], dtype=q.dtype, device=q.device)
        return (p.T @ p - same).square().sum(), (q @ q.T - same).square().sum()
