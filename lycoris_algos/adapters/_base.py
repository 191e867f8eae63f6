"""What a layer may store that changes a parameter: one algorithm, and extras beside it.

A stored form is what a file holds: tensors under known keys, checked, read and written. What it does to a
weight is a structure (../structures), which ``structure`` makes of it; nothing here computes a change.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._types import Factor
from ..errors import ShapeMismatchError
from ..structures import Structure
from . import _registry
from ._fitting import FitRequest, Fitted, Price
from ._stored import Stored
from ._trained import PeftReading, PeftSettings, TrainingFacts

if TYPE_CHECKING:
    from typing_extensions import Self

Shape = Sequence[int]
#: Fetches the weight that an adapter was trained on, where that is known.
Base = Callable[[], Tensor] | None
#: What is solved is kept in, where nothing else is asked for.
FLOAT = torch.float32


class Component(Stored):
    """Something that adds ΔW to a parameter. Subclass ``Algorithm`` or ``Extra``, never this."""

    #: Whether ΔW depends on W.
    needs_weight: ClassVar[bool] = False

    # ---- shapes ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def matrix_shape(self) -> tuple[int | None, int | None]:
        """(o, i·∏k): the shape of ΔW as a matrix of rows; None where any size will do."""

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` can take this ΔW."""
        own = self.matrix_shape
        weight = (shape[0] if shape else 1, math.prod(shape[1:]))
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

    # ---- the change -----------------------------------------------------------------------------

    @abstractmethod
    def structure(self, shape: Shape, dtype: torch.dtype = FLOAT, base: Base = None) -> Structure:
        """What it does to a weight of ``shape``, which it ``fits``. Differentiable; factors are not copied.

        What has to be contracted or solved first is solved in float64 and kept in ``dtype``. ``base`` fetches
        the weight that was trained on: an algorithm that stores itself relative to it raises NeedsBaseError
        without.
        """

    def multiplied(self, factor: Factor) -> Component | None:
        """The same with ``factor``·ΔW, stored the same way; None where no stored factor does that."""
        return None

    @property
    def linear(self) -> bool:
        """Whether ΔW is in proportion to a stored factor, so that ``multiplied`` answers."""
        return type(self).multiplied is not Component.multiplied

    # ---- training -------------------------------------------------------------------------------

    #: What trainers call it, where training can begin with it.
    trained_as: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def begin(cls, weight: Tensor, *args: Any, **options: Any) -> Self:
        """What training of ``weight`` starts from: every tensor is trained, and made in float32 beside it.

        Its keywords are the options that it understands, in LyCORIS' names. ``weight`` is the parameter that
        is changed, for its shape, its device and (T-LoRA) its values. Raises BadValueError for options that
        do not fit it.
        """
        raise TypeError(f"{cls.title} is not trained")

    # ---- fitting --------------------------------------------------------------------------------

    #: Whether every change can be held exactly, with ranks enough.
    universal: ClassVar[bool] = False

    @classmethod
    def numbers_per_rank(cls, rows: int, columns: int) -> int:
        """How many numbers a rank costs when a change of that size is stored as this."""
        return rows + columns

    @classmethod
    def fit(cls, request: FitRequest) -> Fitted:
        """The nearest to a given change that this form can hold; see ``FitRequest``."""
        raise TypeError(f"nothing is fitted to {cls.title}")

    @classmethod
    def prices(cls, request: FitRequest) -> list[Price]:
        """The sizes that the change of ``request`` may be stored in as this, with what each keeps.

        Empty for what is not worth its time on this change.
        """
        return []

    @classmethod
    def can_be_fitted(cls) -> bool:
        """Whether a change can be stored as this (``fit``): what an output may be chosen from."""
        return cls.fit.__func__ is not Component.fit.__func__  # type: ignore[attr-defined]


class Algorithm(Component):
    """The one algorithm of a layer. Defining a subclass registers it (not with ``register=False``)."""

    role: ClassVar[str] = "algorithm"

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            _registry.register(cls)
        _registry.register_trained(cls)

    @property
    def rank(self) -> int | None:
        """Rank as alpha is divided by it; None for an algorithm or a form without one."""
        return None

    @property
    def exact_rank(self) -> int | None:
        """How many ranks two factors need, at most, to hold ΔW exactly; None where nothing tells."""
        return None

    def facts(self) -> dict[str, float]:
        """What a report says about it: {name: number}."""
        alpha = getattr(self, "alpha", None)
        known = {"rank": self.rank, "alpha": alpha}
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def shape_problems(cls, tensors: Mapping[str, Tensor]) -> list[str]:
        """Why ``tensors``, whose names are right, are not this algorithm; for names that two share."""
        return []

    def bias_extras(self) -> tuple[Extra, ...]:
        """What the algorithm does to the layer's bias besides its weight; nothing for most."""
        return ()

    # ---- what other programs mean by the same tensors ---------------------------------------------

    def as_trained(self, name: str, facts: TrainingFacts) -> Iterator[tuple[Algorithm, str]]:
        """(the form with what only the file's metadata tells, what was done), once for each correction.

        ``name`` is the layer's. Each correction is of the one before.
        """
        return iter(())

    def from_peft(self, settings: PeftSettings) -> PeftReading:
        """The form with what only PEFT's configuration tells. Raises BadValueError for what no file means."""
        return PeftReading(self)

    def to_peft(self) -> Algorithm | None:
        """The form that PEFT reads by its default configuration (alpha = rank); None where it has none."""
        return None

    def filling(self) -> Algorithm:
        """The same change by numbers of about 1, for a number type of little range.

        Itself for what is not in proportion to its tensors.
        """
        return self

    # ---- a step of training ---------------------------------------------------------------------------

    def drawn(self) -> Algorithm:
        """What one step trains of it: itself for all but those that draw some of their ranks (DyLoRA)."""
        return self

    #: Whether timesteps switch some of its ranks off while it is trained, and sampled from.
    scheduled: ClassVar[bool] = False

    def masked(self, mask: Tensor) -> Algorithm | None:
        """The same with each rank times a number of ``mask`` (r,); None for what has no ranks to mask."""
        return None

    def resumed(self, weight: Tensor) -> Algorithm:
        """The form that goes on being trained on ``weight``, which it was trained on before."""
        return self

    # ---- fewer ranks, and sums ----------------------------------------------------------------------

    def cut(self, rank: int, nested: str | None) -> Algorithm | None:
        """The same with ``rank`` of its ranks, which are more; None for what has no ranks to choose from.

        ``nested`` says who trained it so that its first ranks are an adapter of their own ("kohya",
        "lycoris"), None for others.
        """
        return None

    def sums_with(self, others: Sequence[Algorithm]) -> bool:
        """Whether Σ c·ΔW of this and ``others`` is exactly one of the same form (``summed``)."""
        return False

    def summed(
        self, all_of: Sequence[Algorithm], coefficients: Sequence[float], shape: Sequence[int] | None
    ) -> Algorithm:
        """Σ c·ΔW of ``all_of`` (this is the first), stored as files of a weight of ``shape`` hold it."""
        raise TypeError(f"a sum of {self.title} is none")


class Extra(Component):
    """Something added to a weight or bias besides the algorithm. Subclasses register themselves."""

    role: ClassVar[str] = "extra"
    #: Which parameter of the layer it changes: "weight" or "bias".
    target: ClassVar[str]
    #: Whether a layer without that parameter may be changed all the same, without this extra.
    optional: ClassVar[bool] = False
    #: The name of what is trained on the layer's bias beside it.
    on_bias: ClassVar[str | None] = None

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            _registry.register(cls, "target")
        _registry.register_trained(cls)

    def beside(self, algorithm: Algorithm | None) -> tuple[Extra, str]:
        """(what its tensors mean beside ``algorithm``, what was done about it or "")."""
        return self, ""

    def to_peft(self, algorithm: Algorithm) -> Extra | None:
        """The form that PEFT reads beside ``algorithm``; None where it has none."""
        return None

    def holding(self, change: Tensor) -> Extra | None:
        """One of the same key with another ``change``; None for what does not store its change as it is."""
        return None


class Magnitude(Stored):
    """DoRA's magnitude d: W' = V·d/‖V‖ for V = W + ΔW."""

    role: ClassVar[str] = "magnitude"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _registry.register(cls)

    @property
    @abstractmethod
    def over_rows(self) -> bool:
        """Whether ‖V‖ is taken over all rows (input axis) instead of within each (output axis)."""

    @abstractmethod
    def fits(self, shape: Sequence[int]) -> None:
        """Raises ShapeMismatchError unless a weight of ``shape`` has as many channels on d's axis."""

    @abstractmethod
    def around(self, change: Structure) -> Structure:
        """The change that gives W + ``change`` the lengths d."""

    @classmethod
    @abstractmethod
    def begin(cls, weight: Tensor, wd_on_out: bool = True) -> Magnitude:
        """The lengths that ``weight`` has, of its outputs or of its input channels: where training starts."""

    @abstractmethod
    def to_peft(self) -> Magnitude | None:
        """The form that PEFT reads; None where it has none."""


def scale(alpha: float | None, rank: int | None, fixed: float | None = None) -> float:
    """What the product of the factors is multiplied by: alpha / rank.

    1 when the file has no alpha, or when the form has no rank to divide by. A ``fixed`` scale (the key
    ``scale`` that A1111 reads) takes the place of all that.
    """
    if fixed is not None:
        return fixed
    return 1.0 if alpha is None or rank is None else alpha / rank
