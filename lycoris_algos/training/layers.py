"""The layers that can be trained: what kind each is, its weight as numbers, and what it does with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..structures import LayerOperation
from ..text import Brief
from .quantised import dequantised, is_linear, is_quantised

_CONVOLUTIONS: dict[type[nn.Module], str] = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"}
#: The forwards that do nothing but the operation of ``Layer.run``.
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm, nn.Embedding)


@dataclass(frozen=True, eq=False)
class Layer(Brief):
    """A module that has one weight, and perhaps a bias.

    ``kind`` is LyCORIS' name for it ("linear", "conv2d", "layernorm" …), ``shape`` that of its weight, and
    ``options`` are what its operation takes besides.
    """

    module: nn.Module
    kind: str
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    #: What a convolution whose borders are not zeros pads its input with: (amounts, mode).
    padding: tuple[Sequence[int], str] | None = None
    #: Whether its weight is not stored as plain numbers, so that nothing can be merged into it.
    is_quantised: bool = False
    #: Whether its forward is ``run`` and nothing else.
    is_plain: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> Layer | None:
        """``module`` as a layer; None for one that cannot be trained."""
        layer = cls._of(module)
        if layer is None:
            return None
        quantised = is_quantised(module)
        forwards = {base.forward for base in _PLAIN}
        renorms = getattr(module, "max_norm", None) is not None
        plain = type(module).forward in forwards and not renorms and not quantised
        return replace(layer, is_quantised=quantised, is_plain=plain)

    @classmethod
    def _of(cls, module: nn.Module) -> Layer | None:
        if is_linear(module):
            return cls(module, "linear", (int(module.out_features), int(module.in_features)))  # type: ignore[arg-type]
        if isinstance(module, nn.Embedding):
            options: dict[str, Any] = {
                "padding_idx": module.padding_idx,
                "scale_grad_by_freq": module.scale_grad_by_freq,
            }
            return cls(module, "embedding", (module.num_embeddings, module.embedding_dim), options)
        if isinstance(module, nn.LayerNorm):
            shape = tuple(module.normalized_shape)
            return _with_weight(
                cls(module, "layernorm", shape, {"normalized_shape": shape, "eps": module.eps})
            )
        if isinstance(module, nn.GroupNorm):
            options = {"num_groups": module.num_groups, "eps": module.eps}
            return _with_weight(cls(module, "groupnorm", (module.num_channels,), options))
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return cls._convolution(module)
        return None

    @classmethod
    def _convolution(cls, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Layer:
        kind = next(name for base, name in _CONVOLUTIONS.items() if isinstance(module, base))
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        options: dict[str, Any] = {
            "stride": module.stride,
            "padding": module.padding,
            "dilation": module.dilation,
            "groups": module.groups,
        }
        padding = None
        if module.padding_mode != "zeros":
            padding = module._reversed_padding_repeated_twice, module.padding_mode
            options["padding"] = 0
        return cls(module, kind, shape, options, padding)

    @property
    def is_norm(self) -> bool:
        """Whether its weight scales the elements of what is normalised."""
        return self.kind in ("layernorm", "groupnorm")

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its weight as numbers (in ``dtype`` where it is quantised), without a gradient."""
        if self.is_quantised:
            return dequantised(self.module, dtype)
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """Its bias, if it has one."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def operation(self, weight: Tensor, known: tuple[Tensor, Tensor] | None = None) -> LayerOperation:
        """What it does to activations; of linear layers and convolutions."""
        return LayerOperation(weight, self.options or None, known)

    def padded(self, x: Tensor) -> Tensor:
        """``x`` as its operation takes it."""
        if self.padding is None:
            return x
        amounts, mode = self.padding
        return functional.pad(x, tuple(amounts), mode=mode)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What it gives for ``x`` with another weight, of its own shape, and another bias."""
        if self.kind == "linear":
            return functional.linear(x, weight, bias)
        if self.kind == "embedding":
            return functional.embedding(x, weight, **self.options)
        if self.kind == "layernorm":
            return functional.layer_norm(x, weight=weight, bias=bias, **self.options)
        if self.kind == "groupnorm":
            return functional.group_norm(x, weight=weight, bias=bias, **self.options)
        y = self.operation(weight)(self.padded(x))
        return y if bias is None else y + bias.reshape(-1, *(1 for _ in self.shape[2:]))


def _with_weight(layer: Layer) -> Layer | None:
    return None if layer.module.weight is None else layer
