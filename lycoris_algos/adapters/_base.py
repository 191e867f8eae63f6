"""What changes a weight: a *core* (LoRA, LoHa, LoKr …, at most one per layer) and *parts* (``diff`` …).

Both answer the same questions:

- ``ready(shape, device, dtype)``: the same component in its plainest form, factors moved, cast and
  contracted as far as that stays smaller than the weight. Everything below works on this form, so Tucker
  kernels, stored dtypes and devices are dealt with in one place per algorithm.
- ``delta(weight)``: the definition of the algorithm, pure and differentiable.
- ``add_rows_(rows, start, multiplier, base)``: the same, fused: adds multiplier·ΔW to some rows of the
  weight without forming ΔW. A law test holds the two equal for every registered class.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ShapeMismatchError
from ..ops.dtypes import compute_dtype
from . import _registry
from ._stored import Stored


class Component(Stored):
    """Something that adds ΔW to a parameter. Subclass ``Core`` or ``Part``, never this."""

    #: Whether ΔW depends on W.
    needs_weight: ClassVar[bool] = False
    #: Whether ΔW is linear in a stored factor, so that a multiplier can be stored in it (``multiplied``).
    linear: ClassVar[bool] = False

    # ---- shapes ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def matrix_shape(self) -> tuple[int | None, int | None]:
        """(o, ∏…): the shape of ΔW as a matrix of rows; None where any size will do."""

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` can take this ΔW."""
        own = self.matrix_shape
        weight = (shape[0] if shape else 1, math.prod(shape[1:]))
        if own == weight:  # it is asked at every patch
            return
        if any(size not in (None, found) for size, found in zip(own, weight, strict=True)):
            change = "×".join("any" if size is None else str(size) for size in own)
            raise ShapeMismatchError(
                f"{self.title} makes a change of {change}, but the weight is "
                f"{'×'.join(map(str, shape)) or 'a single number'}"
            )

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """The shape of the weight it was trained on, kernel and all; None where the tensors do not tell."""
        return None

    # ---- maths ----------------------------------------------------------------------------------

    def multiplied(self, factor: float) -> Component | None:
        """The same with ``factor``·ΔW, stored the same way; None unless ``linear``."""
        return None

    @abstractmethod
    def ready(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Component:
        """Its plainest form for a weight of ``shape`` on ``device`` in ``dtype`` (float32 or float64).

        Never larger than needed, and usually of the same class. Differentiable, idempotent, and cheap when
        nothing is to be done.
        """

    @abstractmethod
    def ready_delta(self, weight: Tensor | None) -> Tensor:
        """ΔW as a matrix (o, ∏…) in the form's own dtype. Called on a ``ready`` form only.

        ``weight`` is W as a matrix, given where ``needs_weight`` says so.
        """

    @abstractmethod
    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        """rows += multiplier·ΔW(base)[start : start + n], in place. Called on a ``ready`` form only.

        ``rows`` (n, ∏…) is a view of n rows of the weight with any strides, on the form's device in
        the form's dtype. ``base`` holds the same rows of W for a ΔW that depends on it; it may be
        ``rows`` itself, so it is read before anything is written over it. ``start`` and n are multiples
        of ``row_unit`` (n may also end at the last row).
        """

    @property
    def row_unit(self) -> int:
        """Rows of a ``ready`` form's ΔW depend on no rows of W outside their own group of this many.

        1 for most; 0 means that they depend on all of them.
        """
        return 1

    def delta(self, weight: Tensor | Sequence[int]) -> Tensor:
        """ΔW for ``weight``, in its shape and on its device, in float32 (float64 for a float64 weight).

        Cores that do not depend on W also answer from a shape alone. Pure and differentiable with
        respect to the factors (and W, where it depends on it). Raises ShapeMismatchError.
        """
        if isinstance(weight, Tensor):
            shape, device, dtype = weight.shape, weight.device, compute_dtype(weight.dtype)
        else:
            if self.needs_weight:
                raise TypeError(f"{self.title} changes a weight by its values: give the weight")
            shape, device, dtype = torch.Size(weight), *self._home()
            weight = torch.empty(0)
        self.fits(shape)
        base = weight.to(dtype).reshape(shape[0], -1) if self.needs_weight else None
        return self.ready(shape, device, dtype).ready_delta(base).to(dtype).reshape(shape)

    def _home(self) -> tuple[torch.device, torch.dtype]:
        """Device of the factors, and the dtype to compute in when no weight says so."""
        found = [value for _, value in self.tensors()]
        return found[0].device, compute_dtype(*(value.dtype for value in found))


class Core(Component):
    """The one algorithm of a layer. Defining a subclass registers it (``register=False``: a base of some)."""

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            _registry.register_core(cls)

    @property
    def rank(self) -> int | None:
        """Rank as alpha is divided by it; None for an algorithm or a form without one."""
        return None

    def facts(self) -> dict[str, float]:
        """What a report says about it: {name: number}."""
        alpha = getattr(self, "alpha", None)
        found = {"rank": self.rank, "alpha": alpha}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        """Why ``tensors``, whose names are right, are not this algorithm; for names that two share."""
        return []

    def prepare(self, base_weight: Callable[[], Tensor]) -> Core:
        """With everything computed that can be computed once, before any hot loop; itself by default.

        ``base_weight`` fetches the weight that the adapter was trained on; it is called only by
        algorithms that store themselves relative to it.
        """
        return self

    @property
    def exact_rank(self) -> int | None:
        """How many ranks two factors need, at most, to hold ΔW exactly; None where nothing tells."""
        return None

    def low_rank(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """ΔW exactly, as (up (o, r), down (r, i·∏k)), where that is smaller than ΔW: r·(o + i·∏k) < o·i·∏k.

        None otherwise, and for a ΔW that depends on W while no ``weight`` is given. On the device of
        ``weight`` (else of the factors), in float32 or float64.
        """
        shape: Sequence[int]
        if weight is not None:
            shape, device, dtype = weight.shape, weight.device, compute_dtype(weight.dtype)
            self.fits(shape)
        elif self.needs_weight:
            return None
        else:
            rows, columns = self.matrix_shape
            shape, (device, dtype) = (rows or 1, columns or 1), self._home()
        if not pays(self.exact_rank, shape[0], math.prod(shape[1:])):
            return None
        form = self.ready(shape, device, dtype)
        assert isinstance(form, Core)
        base = weight.to(dtype).reshape(shape[0], -1) if weight is not None and self.needs_weight else None
        return form.ready_low_rank(base)

    def ready_low_rank(self, weight: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """``low_rank`` of a ``ready`` form, with W as a matrix where it is needed."""
        return None

    def bias_parts(self) -> tuple[Part, ...]:
        """What the core does to the layer's bias besides its weight; nothing for most."""
        return ()


class IndirectCore(Core, register=False):
    """A core that works through another class: its ``ready`` form is of that, and does the maths."""

    def ready_delta(self, weight: Tensor | None) -> Tensor:
        raise TypeError(f"a {type(self).__name__} is no ready form")

    def add_rows_(self, rows: Tensor, start: int, multiplier: float, base: Tensor) -> None:
        raise TypeError(f"a {type(self).__name__} is no ready form")


class Part(Component):
    """Something that is added to a layer's weight or bias besides a core. Subclasses register themselves."""

    #: Which parameter of the layer it changes: "weight" or "bias".
    target: ClassVar[str]
    #: Whether a layer without that parameter may be changed all the same, without this part.
    optional: ClassVar[bool] = False

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            _registry.register_part(cls)


def scale(alpha: float | None, rank: int | None, fixed: float | None = None) -> float:
    """What the product of the factors is multiplied by: alpha / rank.

    1 when the file has no alpha, or when the form has no rank to divide by. A ``fixed`` scale (the key
    ``scale`` that A1111 reads) takes the place of all that.
    """
    if fixed is not None:
        return fixed
    return 1.0 if alpha is None or rank is None else alpha / rank


def pays(rank: int | None, rows: int, columns: int) -> bool:
    """Whether factors of ``rank`` are smaller than the matrix (rows, columns) that they stand for."""
    return rank is not None and rank * (rows + columns) < rows * columns
