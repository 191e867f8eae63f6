"""The one module that trains an adapter, of whatever algorithm, on a layer.

    y = layer(x) + m·Δ(x)          Δ(x): what ΔW(W) adds to the layer's output

Every forward puts the parameters into the stored form, makes its structure, and computes with that: on
activations (``Structure.forward``) or with the weight's change, whichever is cheaper (``_pays``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..adapters import LayerAdapter, begin, change_in_step, resumed
from ..errors import BadValueError
from ..ops.dtypes import compute_dtype
from ..structures import Structure
from ..text import quoted
from .attachment import Attachment
from .layers import Layer
from .step import Step
from .tensors import scaled

# To make a change of the weight, and to go back from it, is about as much work as so many positions of input.
_FORMING = 3


class AdapterModule(Step, Attachment):
    """``adapter``, trained on ``module``: a Linear, a convolution, a norm or an embedding.

    ``multiplier`` is the strength m. In training, ``dropout`` drops elements of what the change adds to the
    output; ``rank_dropout`` rows of the change (its ranks with ``bypass_mode``, where it has some), others
    being divided by their share with ``rank_dropout_scale``; and ``module_dropout`` all of it.
    ``bypass_mode`` asks for the change of activations always. ``scalar``: see ``TrainedTensors``.
    ``mask_group_id`` says which mask of timesteps it follows, if it follows one.

    Raises BadValueError for a module that cannot be trained, ShapeMismatchError for one that does not fit.
    """

    def __init__(
        self,
        module: nn.Module,
        adapter: LayerAdapter,
        *,
        multiplier: float = 1.0,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        rank_dropout_scale: bool = False,
        module_dropout: float = 0.0,
        bypass_mode: bool | None = None,
        scalar: bool = False,
        mask_group_id: int = 0,
    ) -> None:
        super().__init__()
        self.layer = layer_of(module)
        self.multiplier = multiplier
        self.dropout = dropout
        self.rank_dropout = rank_dropout
        self.rank_dropout_scale = rank_dropout_scale
        self.module_dropout = module_dropout
        self.bypass_mode = bypass_mode
        self.drops_ranks = bool(bypass_mode)
        self.mask_group_id = mask_group_id
        self.grad_ckpt = False
        adapter.fits(self.layer.shape)
        self.hold(resumed(adapter, self.layer.weight()) if adapter.needs_weight else adapter, scalar)

    # ---- the change of the weight -----------------------------------------------------------------------

    def changed(self, weight: Tensor, bias: Tensor | None, multiplier: float) -> tuple[Tensor, Tensor | None]:
        adapter = self.adapter
        if adapter.weight_components:
            weight = weight + adapter.delta(weight).to(weight.device) * multiplier
        if adapter.bias is None:
            return weight, bias
        start = weight.new_zeros(weight.shape[0]) if bias is None else bias
        return weight, start + adapter.bias.delta(start).to(start.device) * multiplier

    def get_diff_weight(
        self, multiplier: float = 1.0, shape: Sequence[int] | None = None, device: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.layer.weight().to(self.device), self.layer.bias
        adapter = self.adapter
        change = adapter.delta(weight) * multiplier
        change = (change if shape is None else change.reshape(tuple(shape))).to(device)
        if adapter.bias is None:
            return change, None
        start = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().to(self.device)
        return change, (adapter.bias.delta(start) * multiplier).to(device)

    def get_merged_weight(
        self, multiplier: float = 1.0, shape: Sequence[int] | None = None, device: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.changed(self.layer.weight(), self.layer.bias, multiplier)
        weight = weight if shape is None else weight.reshape(tuple(shape))
        return weight.to(device), None if bias is None else bias.to(device)

    @torch.no_grad()
    def apply_max_norm(self, max_norm: float, device: Any = None) -> tuple[bool | None, Tensor | None]:
        """Makes the norm of its ΔW (DoRA aside) at most ``max_norm``: (whether it was more, the norm now).

        (None, None) for what is not in proportion to its tensors.
        """
        adapter = self.adapter
        algorithm = adapter.algorithm
        if algorithm is None or not algorithm.linear or algorithm.needs_weight:
            return None, None
        norm = LayerAdapter(algorithm).delta(self.layer.shape).norm().to(device)
        if not norm > max_norm:
            return False, norm
        self.load_adapter(scaled(adapter, float(max_norm / norm)))
        return True, norm.new_tensor(max_norm)

    # ---- a step -----------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with the change."""
        if self.training and self.module_dropout and bool(torch.rand(()) < self.module_dropout):
            return self.org_forward(x, *args, **kwargs)
        if self.grad_ckpt and self.training and torch.is_grad_enabled():
            y: Tensor = checkpoint(self._forward, x, *args, use_reentrant=False, **kwargs)
            return y
        return self._forward(x, *args, **kwargs)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter, kept = self.in_step(self.layer.shape[0])
        if not adapter.weight_components:
            return self._shifted(self.org_forward(x, *args, **kwargs), adapter)
        dtype = compute_dtype(self.dtype)
        change = change_in_step(adapter, self.layer.shape, dtype, kept)
        if self._pays(change, x):
            y = self.org_forward(x, *args, **kwargs)
            return self._shifted(self._added(y, self._on_activations(change, x, y)), adapter)
        change = change.cast(x.device, dtype)
        plain_lookup = self.layer.kind == "embedding" and not change.needs_weight
        factors = change.paying_factors() if plain_lookup else None
        if factors is not None:
            return self._added(
                self.org_forward(x, *args, **kwargs), self.layer.run(x, factors[0]) @ factors[1]
            )
        return self._by_weight(self._delta(change, x.device), adapter, x, *args, **kwargs)

    def _pays(self, change: Structure, x: Tensor) -> bool:
        """Whether changing activations is cheaper than changing the weight.

        Each takes three passes (forward, and backward to both operands) over what it multiplies: activations
        over the change's own factors, the weight over itself, where the frozen one takes two of them anyway.
        """
        if self.layer.is_norm or self.layer.kind == "embedding":
            return False
        if self.bypass_mode:
            return True
        work = change.work
        if work is None or self.layer.options.get("groups", 1) != 1:
            return False
        rows, *columns = self.layer.shape
        positions = x.numel() // max(1, columns[0])
        return 3 * positions * work <= (positions + _FORMING) * rows * math.prod(columns)

    def _on_activations(self, change: Structure, x: Tensor, y: Tensor) -> Tensor:
        """Δ(x), ``y`` being the output of what lies below."""
        layer = self.layer
        change, inputs = change.cast(x.device, x.dtype), layer.padded(x)
        if not change.needs_weight:
            shape = torch.empty(layer.shape, device="meta") if layer.is_quantised else layer.weight()
            return change.forward(inputs, layer.operation(shape))
        known = None
        if self.is_alone:
            bias = layer.bias
            own = y if bias is None else y - bias.detach().reshape(-1, *(1 for _ in layer.shape[2:])).to(y)
            known = inputs, own
        weight = layer.weight(x.dtype).to(x.device, x.dtype)
        return change.forward(inputs, layer.operation(weight, known))

    def _delta(self, change: Structure, device: torch.device) -> Tensor:
        """ΔW of a cast ``change``, in the weight's shape."""
        shape = self.layer.shape
        if not change.needs_weight:
            return change.delta().reshape(shape)
        weight = self.layer.weight().to(device, compute_dtype(self.dtype))
        return change.delta(weight.reshape(shape[0], -1)).reshape(shape)

    def _by_weight(
        self, delta: Tensor, adapter: LayerAdapter, x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        shift = self._shift(adapter)
        weight, bias = self.org_weight, self.layer.bias
        if self._may_replace(x, delta):
            if shift is not None:
                bias = shift if bias is None else bias + shift
            return self.layer.run(x, torch.add(weight, delta, alpha=self.multiplier), bias)
        y = self.org_forward(x, *args, **kwargs)
        if x.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
            delta, shift = delta.to(x.dtype), None if shift is None else shift.to(x.dtype)
        if self.layer.is_norm:
            return y + self.layer.run(x, delta * self.multiplier, shift).to(y.dtype)
        return self._shifted(self._added(y, self.layer.run(x, delta)), adapter)

    def _may_replace(self, x: Tensor, delta: Tensor) -> bool:
        """Whether the layer's output with the changed weight is all, and as exact as a sum of two outputs."""
        weight = self.org_weight
        alone = self.is_alone and self.layer.is_plain and not (self.dropout and self.training)
        wide = weight.dtype == delta.dtype and (x.dtype == weight.dtype or not x.is_floating_point())
        here = weight.device == delta.device
        return alone and wide and here and not torch.is_autocast_enabled(x.device.type)

    def _added(self, y: Tensor, change: Tensor) -> Tensor:
        """y + m·change, with dropout of the change."""
        if self.dropout and self.training:
            change = functional.dropout(change, self.dropout)
        if self.multiplier != 1.0:
            change = change * self.multiplier
        return y + change.to(y.dtype)

    def _shift(self, adapter: LayerAdapter) -> Tensor | None:
        """m·Δb, where the bias is trained."""
        if adapter.bias is None:
            return None
        bias = self.layer.bias
        start = torch.zeros(self.layer.shape[0], device=self.device) if bias is None else bias.detach()
        return adapter.bias.delta(start.to(self.device)) * self.multiplier

    def _shifted(self, y: Tensor, adapter: LayerAdapter) -> Tensor:
        shift = self._shift(adapter)
        if shift is None:
            return y
        return y + shift.to(y.dtype).reshape(-1, *(1 for _ in self.layer.shape[2:]))


def layer_of(module: nn.Module) -> Layer:
    """``module`` as a layer. Raises BadValueError for one that cannot be trained."""
    layer = Layer.of(module)
    if layer is None:
        raise BadValueError(f"a {quoted(type(module).__name__)} is no layer that can be trained")
    return layer


def train(module: nn.Module, algorithm: str, *, use_scalar: bool = False, **options: Any) -> AdapterModule:
    """Training of ``module`` by ``algorithm`` ("lora", "lokr" …), from its start values.

    ``options`` are those of ``AdapterModule`` and of the algorithm (``adapters.training_options``). Raises
    BadValueError for those that do not fit, and for a module that cannot be trained.
    """
    layer = layer_of(module)
    general = {name: options.pop(name) for name in _GENERAL & options.keys()}
    if use_scalar:
        options["use_scalar"] = True
    adapter = begin(algorithm, layer.weight(), layer.bias, **options)
    return AdapterModule(module, adapter, scalar=use_scalar, **general)


_GENERAL = {
    "multiplier",
    "dropout",
    "rank_dropout",
    "rank_dropout_scale",
    "module_dropout",
    "bypass_mode",
    "mask_group_id",
}
