"""How an adapter is put on its layer and taken off again, and how its change is merged into the weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LycorisError
from ..text import quoted
from .layers import Layer

# What a layer notes while adapters are on it: which, in order; and its own forward, None for its class's.
_STACK, _FORWARD = "_lycoris_wrappers", "_lycoris_original_forward"
# Its weight and bias in float64, where they were merged into precisely.
_EXACT = "_lycoris_exact"


class Attachment(nn.Module):
    """A module on a ``layer``, whose forward it may take over; several may stand on one.

    Each changes the layer by its own weight's change, whatever the others do, and they are taken off in any
    order. The layer's parameters are never part of this module.
    """

    layer: Layer
    _before_merge: tuple[Tensor, Tensor | None] | None = None

    # ---- on the layer ---------------------------------------------------------------------------------

    @property
    def org_module(self) -> list[nn.Module]:
        """The layer's module, in a list: so it is no part of this one."""
        return [self.layer.module]

    @property
    def org_weight(self) -> Any:
        """The layer's own weight."""
        return self.layer.module.weight

    @org_weight.setter
    def org_weight(self, value: Tensor) -> None:
        self.org_weight.data.copy_(value)

    @property
    def _stack(self) -> list[Attachment]:
        stack: list[Attachment] = self.layer.module.__dict__.get(_STACK, [])
        return stack

    @property
    def is_first(self) -> bool:
        """Whether no other adapter lies below it on the layer."""
        stack = self._stack
        return not stack or stack[0] is self

    @property
    def is_alone(self) -> bool:
        """Whether it is the first, and the layer's forward is that of its class."""
        own = self.layer.module.__dict__.get(_FORWARD if self._stack else "forward")
        return self.is_first and own is None

    @property
    def org_forward(self) -> Callable[..., Tensor]:
        """What the layer did before this was put on it."""
        stack = self._stack
        below = stack.index(self) if self in stack else len(stack)
        return stack[below - 1] if below else self._original

    @property
    def _original(self) -> Callable[..., Tensor]:
        """What the layer does without any adapter."""
        module = self.layer.module
        own: Callable[..., Tensor] | None = module.__dict__.get(_FORWARD if self._stack else "forward")
        return own or type(module).forward.__get__(module)

    def apply_to(self, **kwargs: Any) -> None:
        """Puts it on the layer, above those that are there."""
        noted = self.layer.module.__dict__
        if not self._stack:
            noted[_FORWARD] = noted.get("forward")
        noted[_STACK] = [*(other for other in self._stack if other is not self), self]
        noted["forward"] = self._called

    def restore(self) -> None:
        """Takes it off the layer, which is as it was before, but for others that are still on it."""
        if self not in self._stack:
            return
        noted = self.layer.module.__dict__
        stack = [other for other in noted.pop(_STACK) if other is not self]
        if stack:
            noted[_STACK], noted["forward"] = stack, stack[-1]._called
            return
        own = noted.pop(_FORWARD)
        if own is None:
            del noted["forward"]
        else:
            noted["forward"] = own

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)  # not its forward alone: whoever shards it hooks its calls

    # ---- in the weight ----------------------------------------------------------------------------------

    @abstractmethod
    def get_diff_weight(
        self, multiplier: float = 1.0, shape: Sequence[int] | None = None, device: Any = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(what it changes the weight by, what it changes the bias by), at the strength ``multiplier``."""

    @abstractmethod
    def get_merged_weight(
        self, multiplier: float = 1.0, shape: Sequence[int] | None = None, device: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        """(the changed weight, the changed bias or None)."""

    @torch.no_grad()
    def merge_to(self, multiplier: float = 1.0, *, precise: bool = False) -> None:
        """Adds its change to the layer's weight, and bias, for good.

        ``precise`` keeps both in float64 beside the layer, so that merging over and over loses nothing.
        Raises MergeError for a quantised layer.
        """
        self.require_mergeable()
        module: Any = self.layer.module
        if not precise:
            module.__dict__.pop(_EXACT, None)
            self._write(*self.get_merged_weight(multiplier))
            return
        exact = module.__dict__.get(_EXACT)
        if exact is not None and torch.equal(exact[0].to(module.weight), module.weight):
            weight, bias = exact
        else:
            bias = self.layer.bias
            weight, bias = module.weight.double(), None if bias is None else bias.double()
        weight, bias = self.changed(weight, bias, multiplier)
        module.__dict__[_EXACT] = weight, bias
        self._write(weight, bias)

    @torch.no_grad()
    def onfly_merge(self, multiplier: float = 1.0) -> None:
        """``merge_to`` that ``onfly_restore`` takes back, to the last bit."""
        self.require_mergeable()
        bias = self.layer.bias
        self._before_merge = (
            self.org_weight.detach().cpu().clone(),
            None if bias is None else bias.detach().cpu().clone(),
        )
        self._write(*self.get_merged_weight(multiplier))

    @torch.no_grad()
    def onfly_restore(self) -> None:
        """The weight and the bias that there were before ``onfly_merge``."""
        if self._before_merge is None:
            return
        weight, bias = self._before_merge
        self._before_merge = None
        self._write(weight, bias)
        if bias is None and self.layer.bias is not None:
            self.layer.module.register_parameter("bias", None)

    @abstractmethod
    def changed(self, weight: Tensor, bias: Tensor | None, multiplier: float) -> tuple[Tensor, Tensor | None]:
        """``weight`` and ``bias`` with the change, in their own dtypes."""

    def _write(self, weight: Tensor, bias: Tensor | None) -> None:
        module: Any = self.layer.module
        module.weight.data.copy_(weight)
        if bias is not None and self.layer.bias is None:
            module.bias = nn.Parameter(bias.to(module.weight))
        elif bias is not None:
            module.bias.data.copy_(bias)

    def require_mergeable(self) -> None:
        """Raises MergeError for a layer whose weight is not plain numbers."""
        if self.layer.is_quantised:
            raise MergeError(
                "nothing can be merged into a quantised layer (weight-only FP8, bitsandbytes, torchao): "
                f"this is a {quoted(type(self.layer.module).__name__)}. Merge into the model before that"
            )


class MergeError(LycorisError, RuntimeError):
    """The change cannot be merged into the layer."""
