"""What one step of training computes with: the ranks that a timestep has, and those that dropout leaves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..adapters import Algorithm, LayerAdapter
from .tensors import TrainedTensors
from .timesteps import get_timestep_mask


class Step(TrainedTensors):
    """Trained tensors, of which a step may leave some out."""

    rank_dropout: float = 0.0
    rank_dropout_scale: bool = False
    mask_group_id: int = 0
    #: Whether ``rank_dropout`` drops ranks, where there are some, instead of rows.
    drops_ranks: bool = False

    def in_step(self, rows: int) -> tuple[LayerAdapter, Tensor | None]:
        """(what this step computes with, what each row of its change is multiplied by)."""
        adapter = self.adapter
        algorithm = adapter.algorithm
        if algorithm is not None:
            algorithm = self._active(algorithm.drawn() if self.training else algorithm)
        kept = None
        if self.training and self.rank_dropout:
            ranks = algorithm.rank if algorithm is not None and self.drops_ranks else None
            masked = None
            if algorithm is not None and ranks is not None:
                masked = algorithm.masked(self._drawn(ranks))
            kept = self._drawn(rows) if masked is None else None
            algorithm = masked or algorithm
        if algorithm is adapter.algorithm:
            return adapter, kept
        return replace(adapter, algorithm=algorithm), kept

    def _active(self, algorithm: Algorithm) -> Algorithm:
        """``algorithm`` with the ranks that this timestep has; beyond the mask they are all active."""
        mask = get_timestep_mask(self.mask_group_id) if algorithm.scheduled else None
        if mask is None or algorithm.rank is None:
            return algorithm
        own = mask.reshape(-1)[: algorithm.rank].to(self.device)
        own = functional.pad(own, (0, algorithm.rank - own.numel()), value=1.0)
        return algorithm.masked(own) or algorithm

    def _drawn(self, count: int) -> Tensor:
        """0 for those of ``count`` that ``rank_dropout`` drops, 1 (or more) for the others."""
        kept = (torch.rand(count, device=self.device) >= self.rank_dropout).to(self.dtype)
        return kept / kept.mean().clamp_min(1 / count) if self.rank_dropout_scale else kept
