"""Which parts of a checkpoint a layer may mean by its name: to bake into them, or to read them as a base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..formats import encoder_number, model_paths, text_paths
from ..models import split_names
from ..models.checkpoint import CheckpointIndex, Place, Spot


@dataclass(frozen=True, eq=False)
class Places:
    """The places of the layers of a checkpoint, whose tensors have ``shapes``."""

    index: CheckpointIndex
    shapes: Mapping[str, tuple[int, ...]]

    def meant_by(self, layer: str, is_text: bool) -> Iterator[tuple[Place, ...]]:
        """The places that ``layer`` may mean in the text encoders or the diffusion model, best first.

        Each is one place, or several where the file stores the layer in pieces, in the order of their rows.
        """
        names = self.index.text if is_text else self.index.model
        paths = list(dict.fromkeys((text_paths if is_text else model_paths)(layer)))
        found = list(dict.fromkeys(where for path in paths for where in names.look_up(path)))
        number = encoder_number(layer) if is_text else None
        if number is not None and number <= len(self.index.encoders):
            found.sort(key=lambda where: where.encoder != self.index.encoders[number - 1])
        yield from ((where,) for where in found)
        for path in paths:
            for pieces in split_names(path.replace(".", "_")):
                places = [next(names.look_up(piece), None) for piece in pieces]
                known = [where for where in places if where is not None]
                if len(known) == len(places) and self._can_be_stacked(known):
                    yield self._joined(known)

    def shape(self, spots: Sequence[Spot]) -> tuple[int, ...]:
        """The shape of ``spots`` laid one below the other."""
        shapes = [spot.shape(self.shapes) for spot in spots]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _can_be_stacked(self, places: Sequence[Place]) -> bool:
        shapes = [where.weight.shape(self.shapes) for where in places]
        return all(shapes) and len({shape[1:] for shape in shapes}) == 1

    def _joined(self, places: Sequence[Place]) -> tuple[Place, ...]:
        """``places`` as one where they are slices of one weight that follow each other."""
        first = places[0].weight
        start = None if first.part is None else first.part[1]
        position = start or 0
        for where in places:
            part = where.weight.part
            if part is None or where.weight != replace(first, part=(0, position, part[2])):
                return tuple(places)
            position += part[2]
        part = (0, start or 0, position - (start or 0))
        rows = self.shapes[first.key][0]
        bias = places[0].bias
        whole = None if part[2] == rows else part
        return (Place(replace(first, part=whole), None if bias is None else replace(bias, part=whole)),)
