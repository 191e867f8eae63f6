"""Base weights out of a checkpoint file, read one at a time: ``BaseWeights`` where no model is loaded."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from ...errors import LycorisError, ShapeMismatchError
from ...formats import encoder_number, is_text_layer, model_paths, text_paths
from ...io import SafetensorsReader
from ...models.checkpoint import Place, Spot, index_checkpoint
from ...network import AdapterSet
from ...ops.dtypes import compute_dtype
from ..bake.storage import is_companion, refuse_file, refuse_weight, scale_of
from ..bake.weights import swap_halves
from ..fingerprint import model_record


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
            self._shapes = {key: info.shape for key, info in tensors.items() if not is_companion(key)}
            self._index = index_checkpoint(self._shapes)
        except LycorisError as error:
            self._reader.close()
            raise error.with_context(f"file '{path.name}'") from error
        self._sets = sets
        self._known: dict[str, Place | None] = {}

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
        spot = self._spot(layer, what)
        return None if spot is None else spot.shape(self._shapes)

    def fetch(self, layer: str, what: str) -> Tensor:
        """See ``BaseWeights``. Raises LycorisError for a weight that is stored in a way that hides it."""
        spot = self._spot(layer, what)
        assert spot is not None  # asked only where `shape` answered
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
        return self._place(layer)

    def _spot(self, layer: str, what: str) -> Spot | None:
        where = self._place(layer)
        if where is None:
            return None
        return where.weight if what == "weight" else where.bias

    def _place(self, layer: str) -> Place | None:
        if layer not in self._known:
            self._known[layer] = next((p for p in self._meanings(layer) if self._fits(layer, p)), None)
        return self._known[layer]

    def _meanings(self, layer: str) -> Iterator[Place]:
        """The places that ``layer`` may mean, best first; see merge/bake/plan.py."""
        is_text = is_text_layer(layer)
        for text in (is_text, not is_text):
            names = self._index.text if text else self._index.model
            paths = dict.fromkeys((text_paths if text else model_paths)(layer))
            found = list(dict.fromkeys(where for path in paths for where in names.look_up(path)))
            number = encoder_number(layer) if text else None
            if number is not None and number <= len(self._index.encoders):
                meant = self._index.encoders[number - 1]
                found.sort(key=lambda where: where.encoder != meant)
            yield from found

    def _fits(self, layer: str, where: Place) -> bool:
        shape = where.weight.shape(self._shapes)
        for own in self._sets:
            if layer in own:
                try:
                    own[layer].fits(shape)
                except ShapeMismatchError:
                    return False
        return True
