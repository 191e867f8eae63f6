"""A model that is known from its files, whose weights are read one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import LycorisError
from ..network import AdapterSet
from ..ops.dtypes import compute_dtype
from ..text import quoted
from .checkpoint import index_header
from .known import IndexedModel
from .layers import LayerIndex
from .opened import Checkpoint
from .places import Spot, seen
from .storage import refuse_weight, scale_of

# What positions and counters are stored as; quantised weights are of 8 bits.
_COUNTS = (torch.bool, torch.int16, torch.int32, torch.int64)


class BaseFile(IndexedModel[LayerIndex]):
    """The model at ``path`` (``Checkpoint``); a context manager. ``sets`` are as for ``IndexedModel``.

    Raises FileFormatError for a file that cannot be read, LycorisError for one that hides its weights.
    """

    def __init__(self, path: Path, sets: Sequence[AdapterSet] = ()) -> None:
        self._checkpoint = Checkpoint(path)
        try:
            super().__init__(index_header(self._checkpoint.header.tensors), sets)
        except LycorisError as error:
            self._checkpoint.close()
            raise error.with_context(f"file {quoted(path.name)}") from error

    def __enter__(self) -> BaseFile:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._checkpoint.close()

    def read(self, half: LayerIndex, spot: Spot) -> Tensor:
        """See ``IndexedModel``. Raises LycorisError for a weight that is stored in a way that hides it."""
        self.require_readable(spot)
        tensors = self._checkpoint.header.tensors
        stored = self._checkpoint[spot.key]
        weight = stored.to(compute_dtype(stored.dtype))
        scale = scale_of(spot.key, tensors)
        if scale is not None:
            weight = weight * self._checkpoint[scale].to(weight).reshape(())
        return seen(weight, spot)

    def require_readable(self, spot: Spot) -> None:
        refuse_weight(spot.key, self._checkpoint.header.tensors)

    def unusable(self, spot: Spot) -> str:
        return "whole numbers" if self._checkpoint.header.tensors[spot.key].dtype in _COUNTS else ""

    def asides(self) -> Sequence[str]:
        tensors = self._checkpoint.header.tensors
        if not any(key.startswith("model_ema.") for key in tensors):
            return ()
        return ("holds an averaged (EMA) copy of its weights as well, which is not looked at",)

    def stored_dtype(self, half: LayerIndex, spot: Spot) -> torch.dtype:
        return self._checkpoint.header.tensors[spot.key].dtype

    def record(self) -> Mapping[str, object]:
        return self._checkpoint.record(self._checkpoint.path.name)
