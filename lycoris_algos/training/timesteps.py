"""T-LoRA's mask: which ranks are trained at a timestep of diffusion, the fewer the more noise there is."""

from __future__ import annotations

import torch
from torch import Tensor

_masks: dict[int, Tensor] = {}


def set_timestep_mask(mask: Tensor, group_id: int = 0) -> None:
    """From now on the modules of ``group_id`` multiply their ranks by ``mask`` (1, r), on any device."""
    _masks[group_id] = mask


def get_timestep_mask(group_id: int = 0) -> Tensor | None:
    """The mask of ``group_id``; None where all ranks are active."""
    return _masks.get(group_id)


def clear_timestep_mask(group_id: int = 0) -> None:
    """All ranks of the modules of ``group_id`` are active again."""
    _masks.pop(group_id, None)


def compute_timestep_mask(
    timestep: int, max_timestep: int, max_rank: int, min_rank: int = 1, alpha: float = 1.0
) -> Tensor:
    """(1, ``max_rank``) with ones for the first ranks: all at timestep 0, ``min_rank`` at ``max_timestep``.

    ``alpha`` above 1 takes more of them away in between.
    """
    share = ((max_timestep - timestep) / max_timestep) ** alpha
    active = min(max_rank, int(share * (max_rank - min_rank)) + min_rank)
    return (torch.arange(max_rank) < active).float()[None]
