"""Base weights out of a checkpoint file, read one at a time: ``BaseWeights`` where no model is loaded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from ...errors import LycorisError, ShapeMismatchError
from ...formats import is_text_layer
from ...io import SafetensorsReader
from ...models.checkpoint import Place, Spot, index_checkpoint
from ...network import AdapterSet
from ...ops.dtypes import compute_dtype
from ...ops.rows import stacked
from ..bake.storage import is_companion, refuse_file, refuse_weight, scale_of
from ..bake.weights import swap_halves
from ..fingerprint import model_record
from ..places import Places


class CheckpointWeights:
    """The weights of the file ``path``; a context manager.

    ``sets`` are the adapter sets it will be asked about: a name with several meanings means what they fit.
    Raises FileFormatError for a file that cannot be read, LycorisError for one that hides its weights.
    """

    def __init__(self, path: Path, sets: Sequence[AdapterSet]) -> None:
        self._reader = SafetensorsReader(path)
        try:
            tensors = self._reader.header.tensors
            refuse_file(tensors)
            shapes = {key: info.shape for key, info in tensors.items() if not is_companion(key)}
            self._places = Places(index_checkpoint(shapes), shapes)
        except LycorisError as error:
            self._reader.close()
            raise error.with_context(f"file '{path.name}'") from error
        self._sets = sets
        self._known: dict[str, tuple[Place, ...] | None] = {}

    def __enter__(self) -> CheckpointWeights:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()

    def shape(self, layer: str, what: str) -> tuple[int, ...] | None:
        """See ``BaseWeights``."""
        spots = self._spots(layer, what)
        return None if spots is None else self._places.shape(spots)

    def fetch(self, layer: str, what: str) -> Tensor:
        """See ``BaseWeights``. Raises LycorisError for a weight that is stored in a way that hides it."""
        spots = self._spots(layer, what)
        assert spots is not None  # asked only where `shape` answered
        return stacked([self._read(spot) for spot in spots])

    def _read(self, spot: Spot) -> Tensor:
        tensors = self._reader.header.tensors
        refuse_weight(spot.key, tensors)
        stored = self._reader[spot.key]
        weight = stored.to(compute_dtype(stored.dtype))
        scale = scale_of(spot.key, tensors)
        if scale is not None:
            weight = weight * self._reader[scale].to(weight).reshape(())
        if spot.part is not None:
            weight = weight.narrow(*spot.part)
        if spot.swapped:
            return swap_halves(weight)
        return weight.T if spot.transposed else weight

    def record(self) -> Mapping[str, object]:
        """See ``BaseWeights``."""
        return model_record(self._reader, self._reader.path.name)

    def same_layer(self, layer: str) -> Hashable | None:
        """What ``layer`` means in the file, in terms that can be compared."""
        return self._meaning(layer)

    def is_text(self, layer: str) -> bool:
        """Whether ``layer`` is one of a text encoder: by what it means in the file, else by its name."""
        places = self._meaning(layer)
        return is_text_layer(layer) if places is None else places[0].encoder is not None

    def _spots(self, layer: str, what: str) -> list[Spot] | None:
        """The weights or biases that the layer means, in the order of their rows; None if one is missing."""
        places = self._meaning(layer) or ()
        spots = [where.weight if what == "weight" else where.bias for where in places]
        known = [spot for spot in spots if spot is not None]
        return known if known and len(known) == len(spots) else None

    def _meaning(self, layer: str) -> tuple[Place, ...] | None:
        """The first meaning that the adapters of this name fit; text encoders first for their layers."""
        if layer not in self._known:
            is_text = is_text_layer(layer)
            meanings = (p for text in (is_text, not is_text) for p in self._places.meant_by(layer, text))
            self._known[layer] = next((p for p in meanings if self._fits(layer, p)), None)
        return self._known[layer]

    def _fits(self, layer: str, places: Sequence[Place]) -> bool:
        shape = self._places.shape([where.weight for where in places])
        try:
            for own in self._sets:
                if layer in own:
                    own[layer].fits(shape)
        except ShapeMismatchError:
            return False
        return True
