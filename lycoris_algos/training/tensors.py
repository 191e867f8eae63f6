"""An adapter whose tensors are parameters of a module, under the names that a file gives them.

So the module's state dict is what a file holds, and whatever moves, shards, casts or optimises modules does
that to the adapter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Factor
from ..adapters import Algorithm, LayerAdapter, known_suffixes, trained_suffixes, with_tensors
from ..errors import BadValueError, ShapeMismatchError
from ..text import quoted


class TrainedTensors(nn.Module):
    """The tensors of ``adapter``: parameters, or buffers where they are not trained. Numbers stay numbers.

    ``scalar`` trains a number besides, which the algorithm's change is multiplied by and which starts at 0.
    """

    scalar: Tensor

    def hold(self, adapter: LayerAdapter, scalar: bool) -> None:
        """Takes the tensors over, once. Raises BadValueError for a scalar where nothing can be multiplied."""
        if scalar and (adapter.algorithm is None or not adapter.algorithm.linear):
            raise BadValueError(f"{' + '.join(adapter.titles)} cannot be multiplied by a trained number")
        if scalar:
            self.register_parameter("scalar", nn.Parameter(torch.zeros(())))
        else:
            self.register_buffer("scalar", torch.ones(()), persistent=False)
        self._template = adapter
        self._trained = trained_suffixes(adapter)
        self._places: list[tuple[str, nn.Module, str]] = []
        for suffix, value in adapter.to_tensors().items():
            if suffix not in self._trained and not value.dim():
                continue
            owner: nn.Module = self
            *path, last = suffix.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            stored = value.detach().clone()
            if suffix in self._trained:
                owner.register_parameter(last, nn.Parameter(stored))
            else:
                owner.register_buffer(last, stored)
            self._places.append((suffix, owner, last))

    @property
    def adapter(self) -> LayerAdapter:
        """What is trained, as a file stores it; its tensors are the parameters, or made of them."""
        adapter = with_tensors(self._template, self._held())
        if "scalar" not in self._parameters:
            return adapter
        return scaled(adapter, self.scalar)

    def _held(self) -> dict[str, Tensor]:
        return {suffix: getattr(owner, name) for suffix, owner, name in self._places}

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What its parameters are stored in."""
        return next(self.parameters()).dtype

    # ---- files ------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The keys and tensors that a file has for this layer."""
        prefix = kwargs.get("prefix", "")
        destination = super().state_dict(*args, **kwargs)
        destination.pop(f"{prefix}scalar", None)
        for suffix, value in self.adapter.to_tensors().items():
            destination[prefix + suffix] = value if kwargs.get("keep_vars") else value.detach()
        return destination

    def load_adapter(self, adapter: LayerAdapter) -> None:
        """Goes on with the tensors and numbers of ``adapter``, which has the same ones in the same sizes.

        Raises ShapeMismatchError, and changes nothing, for another.
        """
        given, own = adapter.to_tensors(), self._template.to_tensors()
        for suffix in sorted(self._trained):
            stored = tuple(given[suffix].shape) if suffix in given else None
            if stored != tuple(own[suffix].shape):
                kept = "no tensor" if stored is None else f"the shape {stored}"
                raise ShapeMismatchError(
                    f"what is resumed has {kept} for {quoted(suffix)}, but this training has "
                    f"{tuple(own[suffix].shape)}: ask for its algorithm, rank and options"
                )
        self.load_state_dict(given)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """As any module's; and the numbers that come with the tensors (alpha) are its own from now on."""
        held = {suffix for suffix, _, _ in self._places}
        keys = {suffix: prefix + suffix for suffix in known_suffixes() - held}
        numbers = {
            suffix: state_dict.pop(key)
            for suffix, key in keys.items()
            if key in state_dict and state_dict[key].numel() == 1
        }
        self._template = with_tensors(self._template, numbers)
        for suffix, own in self._held().items():
            stored = state_dict.get(prefix + suffix)
            if stored is None and suffix not in self._trained:
                state_dict[prefix + suffix] = own
            elif stored is not None and stored.numel() == own.numel():
                state_dict[prefix + suffix] = stored.reshape(
                    own.shape
                )  # (o, r) of a convolution's (o, r, 1, 1)
        if "scalar" in self._parameters:  # what is loaded has it in its factors
            state_dict.setdefault(f"{prefix}scalar", torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def scaled(adapter: LayerAdapter, factor: Factor) -> LayerAdapter:
    """``adapter`` whose algorithm, which has a factor for that, changes ``factor`` times as much."""
    algorithm = None if adapter.algorithm is None else adapter.algorithm.multiplied(factor)
    assert isinstance(algorithm, Algorithm)
    return replace(adapter, algorithm=algorithm)
